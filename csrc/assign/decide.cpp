#include "assign/decide.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <type_traits>

#include "assign/scores.h"

namespace clustermim {
namespace {

// For fewer it does not pay to read the codebook's grid (ExactNearest).
constexpr size_t kIntegersPay = 8;

}  // namespace

template <typename T>
int32_t Decider<T>::decide(const T* row, std::vector<int32_t>& candidates, TierCounts& tiers) {
  // Every centroid ties with a zero row, exactly.
  if (book_.metric != Metric::euclidean &&
      std::all_of(row, row + book_.dim, [](T v) { return v == T(0); })) {
    return 0;
  }
  if (candidates.size() == 1) return candidates[0];
  if constexpr (std::is_same_v<T, float>) {
    if (book_.metric == Metric::euclidean && book_.exact_float32()) {
      drop_by_float32(row, candidates);
      if (candidates.size() == 1) {
        ++tiers.float32;
        return candidates[0];
      }
    }
  }
  return decide_by_float64(row, candidates, tiers);
}

template <typename T>
int32_t Decider<T>::decide_all(const T* row, TierCounts& tiers) {
  all_.resize(book_.entries());
  std::iota(all_.begin(), all_.end(), 0);
  return decide(row, all_, tiers);
}

template <typename T>
void Decider<T>::decide_ties(const T* const* rows, int count, int32_t* winners, TierCounts& tiers) {
  const float* singles[ExactNearest::kMaxRows];
  int which[ExactNearest::kMaxRows], num = 0;
  std::fill_n(winners, count, -1);
  for (int r = 0; r < count && exact_.usable(); ++r) {
    singles[num] = as_float32(rows[r], r);
    which[num] = r;
    if (singles[num]) ++num;
  }
  if (num > 0) {
    int32_t found[ExactNearest::kMaxRows];
    exact_.decide(singles, num, nullptr, 0, found);
    for (int i = 0; i < num; ++i) winners[which[i]] = found[i];
  }
  for (int r = 0; r < count; ++r) {
    if (winners[r] >= 0) {
      ++tiers.exact;
    } else {
      winners[r] = decide_all(rows[r], tiers);
    }
  }
}

template <typename T>
const float* Decider<T>::as_float32(const T* row, int slot) {
  if constexpr (std::is_same_v<T, float>) {
    return row;
  } else {
    narrow_.resize(ExactNearest::kMaxRows * book_.dim);
    float* to = narrow_.data() + slot * book_.dim;
    for (int64_t d = 0; d < book_.dim; ++d) to[d] = static_cast<float>(row[d]);
    return std::equal(row, row + book_.dim, to) ? to : nullptr;
  }
}

template <typename T>
bool Decider<T>::decide_by_integers(const T* row, const std::vector<int32_t>& candidates,
                                    int32_t& winner) {
  if (candidates.size() <= kIntegersPay || !exact_.usable()) return false;
  const float* single = as_float32(row, 0);
  if (!single) return false;
  exact_.decide(&single, 1, candidates.data(), static_cast<int64_t>(candidates.size()), &winner);
  return winner >= 0;
}

// The direct form in float32 has a small relative error, whatever the size of x and c.
template <typename T>
void Decider<T>::drop_by_float32(const float* row, std::vector<int32_t>& candidates) {
  // Per term a difference (twice, it is squared) and a square; D / 16 + 44 additions.
  const float relative = 1.02f * 0x1p-24f * (static_cast<float>(book_.dim) / 16.0f + 47.0f);
  const float underflow = static_cast<float>(lost_squares(book_.dim + 1));  // not rounded down
  distance_.clear();
  float limit = std::numeric_limits<float>::infinity();
  for (int32_t e : candidates) {
    const float s = book_.kernel->scan.squared_distance(row, book_.row32(e), book_.dim);
    distance_.push_back(s);
    limit = std::min(limit, s * (1.0f + relative) + underflow);  // ignores NaN
  }
  size_t kept = 0;
  for (size_t i = 0; i < candidates.size(); ++i) {
    // NaN stays, and so does infinity (then NaN): the true distance may still be a number.
    if (distance_[i] - relative * distance_[i] - underflow > limit) continue;
    candidates[kept++] = candidates[i];
  }
  candidates.resize(kept);
}

template <typename T>
int32_t Decider<T>::decide_by_float64(const T* row, const std::vector<int32_t>& candidates,
                                      TierCounts& tiers) {
  int32_t winner = -1;
  if (decide_by_integers(row, candidates, winner)) {
    ++tiers.exact;
    return winner;
  }
  double best_upper = std::numeric_limits<double>::infinity();
  lower_.resize(candidates.size());
  for (size_t i = 0; i < candidates.size(); ++i) {
    const int32_t e = candidates[i];
    const double* c = book_.value(e, scratch_[0].data());
    const Score s = float64_score(book_.metric, row, c, book_.norms[e], book_.dim);
    lower_[i] = s.score - s.bound;
    const double upper = s.score + s.bound;
    if (upper < best_upper) best_upper = upper;
  }
  bool compared = false;
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (lower_[i] > best_upper) continue;  // NaN stays open
    const int32_t e = candidates[i];
    if (winner < 0) {
      winner = e;
      continue;
    }
    compared = true;  // ascending ids: an equal later one does not replace the winner
    const double* c = book_.value(e, scratch_[0].data());
    const double* best = book_.value(winner, scratch_[1].data());
    if (exact_compare(book_.metric, row, c, best, book_.dim) < 0) winner = e;
  }
  ++(compared ? tiers.exact : tiers.float64);
  return winner;
}

template class Decider<float>;
template class Decider<double>;

}  // namespace clustermim
