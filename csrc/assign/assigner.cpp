#include "assign/assigner.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "assign/scores.h"
#include "core/parallel_for.h"

namespace clustermim {
namespace {

constexpr int64_t kBlockBytes = 512 * 1024;  // of 2 MiB second-level cache
constexpr int64_t kMaxBlockRows = 224;  // the filter's state, 48 to 192 bytes a row, stays in L1
constexpr double kMaxRowNorm = 0x1p60;  // keeps float32 scores far from overflow

typedef float Vec4 __attribute__((vector_size(16)));

inline Vec4 load4(const float* p) {
  Vec4 v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
inline Vec4 load4(const double* p) {
  return Vec4{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]),
              static_cast<float>(p[3])};
}

// x' = (x - centre) * scale, float32 rows in float32, float64 rows in float64 and then rounded.
// Returns an upper bound on its norm (Inf or NaN if it has any).
template <typename T>
double centre_row(const T* x, const float* centre, float scale, int64_t dim, float* out) {
  Vec4 sums[4] = {};
  int64_t d = 0;
  for (; d + 16 <= dim; d += 16) {
    for (int v = 0; v < 4; ++v) {
      Vec4 value;
      if constexpr (__is_same(T, float)) {
        value = (load4(x + d + 4 * v) - load4(centre + d + 4 * v)) * scale;
      } else {
        double wide[4];
        for (int l = 0; l < 4; ++l) wide[l] = (x[d + 4 * v + l] - centre[d + 4 * v + l]) * scale;
        value = load4(wide);
      }
      __builtin_memcpy(out + d + 4 * v, &value, sizeof(value));
      sums[v] += value * value;
    }
  }
  float tail = 0.0f;
  for (; d < dim; ++d) {
    out[d] = static_cast<float>((x[d] - centre[d]) * scale);
    tail += out[d] * out[d];
  }
  const Vec4 sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  const double squared = static_cast<double>((sum[0] + sum[1]) + (sum[2] + sum[3])) + tail;
  // At most D + 2 roundings of 2^-24 in the sum; squares below 2^-126 may be lost.
  const double slack = 1.0 + 2.0 * static_cast<double>(dim + 2) * 0x1p-24;
  return std::sqrt(squared * slack + static_cast<double>(dim) * 0x1p-126);
}

template <typename T>
bool all_finite(const T* row, int64_t dim) {
  return std::all_of(row, row + dim, [](T v) { return std::isfinite(v); });
}

template <typename T>
bool all_zero(const T* row, int64_t dim) {
  return std::all_of(row, row + dim, [](T v) { return v == T(0); });
}

}  // namespace

int64_t block_rows(const Codebook& codebook) {
  const int64_t row_bytes = 4 * std::max<int64_t>(codebook.dim, 1);
  const int64_t tile = codebook.kernel->rows;
  const int64_t rows = std::clamp(kBlockBytes / row_bytes, tile, kMaxBlockRows);
  return rows / tile * tile;
}

template <typename T>
Assigner<T>::Assigner(const Codebook& codebook) : book_(codebook) {
  const int64_t rows = block_rows(book_);
  x_stride_ = (book_.dim + 15) / 16 * 16 + 16;  // never a multiple of 4096 bytes: L1 sets
  x_.resize(rows * x_stride_);
  state_.resize(rows * 3 * book_.kernel->lanes);
  best_.resize(rows);
  second_.resize(rows);
  index_.resize(rows);
  norms_.resize(rows);
  filterable_.resize(rows);
  scores_.resize(book_.num_panels * book_.kernel->columns);
  upper_.resize(book_.entries());
  lower_.resize(book_.entries());
  candidates_.reserve(book_.entries());
}

template <typename T>
void Assigner<T>::load(const T* rows, int64_t stride, int64_t count) {
  for (int64_t r = 0; r < count; ++r) {
    float* x = x_.data() + r * x_stride_;
    norms_[r] = centre_row(rows + r * stride, book_.centre.data(), book_.row_scale(), book_.dim, x);
    filterable_[r] = book_.filter_usable && norms_[r] < kMaxRowNorm;  // false for Inf and NaN
    if (!filterable_[r]) std::fill_n(x, book_.dim, 0.0f);
  }
}

template <typename T>
void Assigner<T>::assign(const T* rows, int64_t stride, int64_t count, int64_t* ids,
                         double* value) {
  const bool can_win = book_.entries() > 0;
  if (can_win) {
    load(rows, stride, count);
    if (book_.filter_usable) {
      book_.kernel->top2(x_.data(), x_stride_, count, book_.panels.data(), book_.bias.data(),
                         book_.num_panels, book_.dim, state_.data(), best_.data(), second_.data(),
                         index_.data());
    }
  }
  for (int64_t r = 0; r < count; ++r) {
    const T* row = rows + r * stride;
    int64_t entry = -1;
    if (can_win && filterable_[r]) {
      const double error = book_.largest_filter_error(norms_[r]);
      const double gap = static_cast<double>(best_[r]) - static_cast<double>(second_[r]);
      entry = gap > 2.0 * error ? index_[r] : rescore(row, r);
    } else if (can_win && all_finite(row, book_.dim)) {
      entry = rescore(row, r);
    } else {
      ++tiers.invalid;
    }
    ids[r] = entry < 0 ? -1 : book_.ids[entry];
    if (value) {
      value[r] = entry < 0 ? std::numeric_limits<double>::quiet_NaN()
                           : metric_value(book_.metric, row, book_.value(entry), book_.dim);
    }
  }
}

// The entries that the filter's own scores, each with its own bound, cannot exclude.
template <typename T>
void Assigner<T>::collect_candidates(int64_t block_row) {
  candidates_.clear();
  const int32_t entries = static_cast<int32_t>(book_.entries());
  if (!filterable_[block_row]) {
    for (int32_t e = 0; e < entries; ++e) candidates_.push_back(e);
    return;
  }
  book_.kernel->scores(x_.data() + block_row * x_stride_, book_.panels.data(), book_.bias.data(),
                       book_.num_panels, book_.dim, scores_.data());
  double best_lower = -std::numeric_limits<double>::infinity();
  for (int32_t e = 0; e < entries; ++e) {
    const double error =
        book_.filter_error(norms_[block_row], book_.filter_norms[e], book_.bias[e]);
    upper_[e] = scores_[e] + error;
    best_lower = std::max(best_lower, scores_[e] - error);
  }
  for (int32_t e = 0; e < entries; ++e) {
    if (upper_[e] >= best_lower) candidates_.push_back(e);
  }
}

template <typename T>
int64_t Assigner<T>::rescore(const T* row, int64_t block_row) {
  ++tiers.float64;
  // Every centroid ties with a zero row, exactly.
  if (book_.metric != Metric::euclidean && all_zero(row, book_.dim)) return 0;
  collect_candidates(block_row);
  double best_upper = std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < candidates_.size(); ++i) {
    const int32_t e = candidates_[i];
    const Score s = float64_score(book_.metric, row, book_.value(e), book_.norms[e], book_.dim);
    lower_[i] = s.score - s.bound;
    const double upper = s.score + s.bound;
    if (upper < best_upper) best_upper = upper;
  }
  int64_t winner = -1;
  bool compared = false;
  for (size_t i = 0; i < candidates_.size(); ++i) {
    if (lower_[i] > best_upper) continue;  // NaN stays open
    const int32_t e = candidates_[i];
    if (winner < 0) {
      winner = e;
      continue;
    }
    compared = true;  // ascending ids: an equal later one does not replace the winner
    if (exact_compare(book_.metric, row, book_.value(e), book_.value(winner), book_.dim) < 0) {
      winner = e;
    }
  }
  if (compared) {
    --tiers.float64;
    ++tiers.exact;
  }
  return winner;
}

template <typename T>
Status assign_rows(const RowSource<T>& source, const Codebook& codebook, int threads, int64_t* ids,
                   double* value, TierCounts* tiers) {
  const int64_t block = block_rows(codebook), total = source.num_rows();
  struct Worker {
    Assigner<T> assigner;
    std::vector<T> scratch;
  };
  std::vector<std::unique_ptr<Worker>> workers(std::max(threads, 1));
  auto body = [&](int64_t task, int index) {
    auto& worker = workers[index];
    if (!worker) {
      worker = std::make_unique<Worker>(
          Worker{Assigner<T>(codebook), std::vector<T>(block * codebook.dim)});
    }
    const int64_t begin = task * block, count = std::min(block, total - begin);
    int64_t stride = 0;
    const T* rows = source.rows(begin, count, worker->scratch.data(), &stride);
    worker->assigner.assign(rows, stride, count, ids + begin, value ? value + begin : nullptr);
  };
  CMIM_RETURN_IF_ERROR(parallel_for(threads, (total + block - 1) / block, body));
  for (const auto& worker : workers) {
    if (!worker) continue;
    tiers->float64 += worker->assigner.tiers.float64;
    tiers->exact += worker->assigner.tiers.exact;
    tiers->invalid += worker->assigner.tiers.invalid;
  }
  return Status();
}

template class Assigner<float>;
template class Assigner<double>;
template Status assign_rows(const RowSource<float>&, const Codebook&, int, int64_t*, double*,
                            TierCounts*);
template Status assign_rows(const RowSource<double>&, const Codebook&, int, int64_t*, double*,
                            TierCounts*);

}  // namespace clustermim
