// The body of exact_dot.h, included by one translation unit per ISA, which defines
// CMIM_VECTOR_BYTES first. Contraction changes nothing: the products are exact.
#pragma once

#include "assign/exact_dot.h"
#include "core/double_vector.h"

namespace clustermim {
namespace {

template <int kRows, bool kTwoSums>
CMIM_INLINE void add_step(const double* x, int64_t stride, Vec c, Vec (&high)[kRows],
                          Vec (&low)[kRows]) {
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    const Vec value = load(x + r * stride), next = high[r] + value * c;
    if constexpr (kTwoSums) low[r] += value * c - (next - high[r]);
    high[r] = next;
  }
}

// One row alone has two sums of each kind in turn: each addition waits for the one before.
template <int kRows, bool kTwoSums>
CMIM_INLINE void dots(const double* x, int64_t stride, const double* start, const float* c,
                      int64_t dim, double* high_out, double* low_out) {
  Vec high[kRows], low[kRows], more_high[kRows], more_low[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    high[r] = more_high[r] = Vec{} + start[r];
    low[r] = more_low[r] = Vec{};
  }
  int64_t d = 0;
  if constexpr (kRows == 1) {
    for (; d + 2 * kLanes <= dim; d += 2 * kLanes) {
      add_step<kRows, kTwoSums>(x + d, stride, load(c + d), high, low);
      add_step<kRows, kTwoSums>(x + d + kLanes, stride, load(c + d + kLanes), more_high, more_low);
    }
  }
  for (; d + kLanes <= dim; d += kLanes) {
    add_step<kRows, kTwoSums>(x + d, stride, load(c + d), high, low);
  }
  if (d < dim) {
    float last[kLanes] = {};
    for (int64_t i = 0; d + i < dim; ++i) last[i] = c[d + i];
    add_step<kRows, kTwoSums>(x + d, stride, load(last), high, low);
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    high_out[r] = sum((high[r] - start[r]) + (more_high[r] - start[r]));
    low_out[r] = sum(low[r] + more_low[r]);
  }
}

template <bool kTwoSums>
static void dots_of_rows(const ExactRows& rows, const float* const* centroids, int count,
                         int64_t dim, ExactDots* out) {
  for (int k = 0; k < count; ++k) {
    if (rows.rows == kExactRows) {
      dots<kExactRows, kTwoSums>(rows.x, rows.stride, rows.start, centroids[k], dim, out->high[k],
                                 out->low[k]);
      continue;
    }
    for (int r = 0; r < rows.rows; ++r) {
      dots<1, kTwoSums>(rows.x + r * rows.stride, rows.stride, rows.start + r, centroids[k], dim,
                        out->high[k] + r, out->low[k] + r);
    }
  }
}

constexpr ExactDotKernel kThisUnit = {&dots_of_rows<true>, &dots_of_rows<false>};

}  // namespace
}  // namespace clustermim
