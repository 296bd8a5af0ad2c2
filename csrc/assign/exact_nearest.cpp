#include "assign/exact_nearest.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/cpu_features.h"
#include "core/exact_sum.h"

namespace clustermim {
namespace {

const ExactDotKernel& kernel() {
#if defined(__x86_64__)
  if (current_isa() >= Isa::avx512) return kExactDotAvx512;
  if (current_isa() >= Isa::avx2) return kExactDotAvx2;
#endif
  return kExactDotGeneric;
}

int log2_ceil(int64_t n) {
  return n <= 1 ? 0 : static_cast<int>(std::bit_width(static_cast<uint64_t>(n - 1)));
}

int sign(__int128 v) {
  return (v > 0) - (v < 0);
}

std::vector<uint64_t> words(__int128 v) {
  const auto size = static_cast<unsigned __int128>(v < 0 ? -v : v);
  return {static_cast<uint64_t>(size), static_cast<uint64_t>(size >> 64)};
}

// The sign of dot_a / sqrt(norm_a) - dot_b / sqrt(norm_b), norms being squared and 0 / 0 = 0.
int compare_cosines(__int128 dot_a, __int128 norm_a, __int128 dot_b, __int128 norm_b) {
  if (norm_a == norm_b) return sign(dot_a - dot_b);
  if (sign(dot_a) != sign(dot_b)) return sign(dot_a) - sign(dot_b);
  if (dot_a == 0) return 0;
  const double da = static_cast<double>(dot_a), db = static_cast<double>(dot_b);
  const double a = da * da * static_cast<double>(norm_b), b = db * db * static_cast<double>(norm_a);
  if (std::abs(a - b) > 0x1p-48 * (a + b)) return a > b ? sign(dot_a) : -sign(dot_a);
  const auto square_a = multiply_integers(words(dot_a), words(dot_a));
  const auto square_b = multiply_integers(words(dot_b), words(dot_b));
  return sign(dot_a) * compare_integers(multiply_integers(square_a, words(norm_b)),
                                        multiply_integers(square_b, words(norm_a)));
}

// Bits of a score, sign left out, that __int128 holds with room for one subtraction.
constexpr int kScoreBits = 125;

}  // namespace

void ExactNearest::Grid::add(const float* v, int64_t dim) {
  for (int64_t d = 0; d < dim; ++d) {
    const uint32_t bits = std::bit_cast<uint32_t>(v[d]) & 0x7fffffffu;
    if (bits == 0) continue;
    const uint32_t biased = bits >> 23, fraction = bits & 0x7fffffu;
    const uint32_t mantissa = biased == 0 ? fraction : fraction | 0x800000u;
    const int unit = static_cast<int>(std::max(biased, 1u)) - 150;  // of the mantissa's last bit
    const int low = unit + std::countr_zero(mantissa);
    const int high = unit + static_cast<int>(std::bit_width(mantissa));
    lowest = any ? std::min(lowest, low) : low;
    highest = any ? std::max(highest, high) : high;
    any = true;
  }
}

bool ExactNearest::usable() {
  if (!prepared_) prepare();
  return usable_;
}

void ExactNearest::prepare() {
  prepared_ = true;
  if (!book_.exact_float32()) return;
  for (int64_t e = 0; e < book_.entries(); ++e) grid_.add(book_.row32(e), book_.dim);
  stride_ = (book_.dim + 15) / 16 * 16 + 8;  // not a multiple of 4096 bytes: L1 sets
  x_.assign(kMaxRows * stride_, 0.0);
  if (book_.metric == Metric::dot) {
    usable_ = true;
    return;
  }
  if (2 * grid_.width() + log2_ceil(book_.dim) > kScoreBits) return;
  const Plan p = plan(grid_);
  if (!p.fits) return;
  norms_.resize(book_.entries());
  for (int64_t e = 0; e < book_.entries(); ++e) {
    const float* c = book_.row32(e);
    std::copy_n(c, book_.dim, x_.data());
    ExactDots dots;
    kernel().two_sums({x_.data(), stride_, 1, {p.start}}, &c, 1, book_.dim, &dots);
    norms_[e] = dot(p, dots.high[0][0], dots.low[0][0]);
  }
  usable_ = true;
}

// With |x| < 2^mx, |c| < 2^mc and L = ceil(log2 D), the sum of |x c| is below 2^(L + mx + mc),
// which must be at most 2^(S + 51): then start + sum stays in [2^(S + 52), 2^(S + 53)], whose
// numbers are 2^S apart. What the first sum leaves of a product is at most 2^(S - 1) and a multiple
// of 2^(qx + qc); D of those are exact in float64 if L + S - 1 <= 53 + qx + qc. All exponents are
// far inside float64's range: |q|, |m| <= 149 and S >= qx + qc.
ExactNearest::Plan ExactNearest::plan(const Grid& row) const {
  const int length = log2_ceil(book_.dim), unit = row.lowest + grid_.lowest;
  const int spread = std::max(length + row.highest + grid_.highest - 51, unit);
  Plan p;
  if (length + spread - 1 > 53 + unit) return p;
  p.one_sum = spread == unit;
  p.start = std::ldexp(1.5, spread + 52);
  p.high_scale = std::ldexp(1.0, -spread);
  p.low_scale = std::ldexp(1.0, -unit);
  p.high_shift = spread - unit;
  int bits = length + row.width() + grid_.width();
  if (book_.metric == Metric::euclidean) {  // |c|^2 - 2 x.c in units of the finer of both
    const int score_unit = std::min(2 * grid_.lowest, unit + 1);
    p.norm_shift = 2 * grid_.lowest - score_unit;
    p.dot_shift = unit + 1 - score_unit;
    bits = std::max(bits + p.dot_shift, length + 2 * grid_.width() + p.norm_shift) + 1;
  }
  p.fits = bits <= kScoreBits;
  return p;
}

__int128 ExactNearest::dot(const Plan& p, double high, double low) {
  return (static_cast<__int128>(static_cast<int64_t>(high * p.high_scale)) *
          (static_cast<__int128>(1) << p.high_shift)) +
         static_cast<int64_t>(low * p.low_scale);
}

void ExactNearest::take(Best& best, int32_t entry, double high, double low) const {
  const __int128 product = dot(best.plan, high, low);
  if (book_.metric == Metric::cosine) {
    if (best.entry >= 0 &&
        compare_cosines(product, norms_[entry], best.score, norms_[best.entry]) <= 0) {
      return;
    }
    best.score = product;
  } else {
    const __int128 score =
        book_.metric == Metric::dot
            ? -product
            : norms_[entry] * (static_cast<__int128>(1) << best.plan.norm_shift) -
                  product * (static_cast<__int128>(1) << best.plan.dot_shift);
    if (best.entry >= 0 && score >= best.score) return;
    best.score = score;
  }
  best.entry = entry;
}

void ExactNearest::decide(const float* const* rows, int count, const int32_t* entries,
                          int64_t num_entries, int32_t* winners) {
  Best best[kMaxRows];
  bool one_sum = true;
  for (int r = 0; r < count; ++r) {
    Grid grid;
    grid.add(rows[r], book_.dim);
    if (!grid.any) grid.lowest = grid.highest = grid_.lowest;
    best[r].plan = plan(grid);
    one_sum = one_sum && (best[r].plan.one_sum || !best[r].plan.fits);
    std::copy_n(rows[r], book_.dim, x_.data() + r * stride_);
  }
  const auto multiply = one_sum ? kernel().one_sum : kernel().two_sums;
  if (!entries) num_entries = book_.entries();
  for (int64_t begin = 0; begin < num_entries; begin += kExactCentroids) {
    const int some = static_cast<int>(std::min<int64_t>(kExactCentroids, num_entries - begin));
    int32_t which[kExactCentroids];
    const float* centroids[kExactCentroids];
    for (int k = 0; k < some; ++k) {
      which[k] = entries ? entries[begin + k] : static_cast<int32_t>(begin) + k;
      centroids[k] = book_.row32(which[k]);
    }
    for (int first = 0; first < count; first += kExactRows) {
      ExactRows together = {
          x_.data() + first * stride_, stride_, std::min(kExactRows, count - first), {}};
      for (int r = 0; r < together.rows; ++r) together.start[r] = best[first + r].plan.start;
      ExactDots dots;
      multiply(together, centroids, some, book_.dim, &dots);
      for (int r = 0; r < together.rows; ++r) {
        if (!best[first + r].plan.fits) continue;
        for (int k = 0; k < some; ++k) {
          take(best[first + r], which[k], dots.high[k][r], dots.low[k][r]);
        }
      }
    }
  }
  for (int r = 0; r < count; ++r) winners[r] = best[r].entry;
}

}  // namespace clustermim
