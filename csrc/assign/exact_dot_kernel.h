// The body of exact_dot.h, included by one translation unit per ISA, which defines
// CMIM_VECTOR_BYTES first. Contraction changes nothing: the products are exact.
#pragma once

#include "assign/exact_dot.h"

namespace clustermim {
namespace {

constexpr int kLanes = CMIM_VECTOR_BYTES / 8;

typedef double Vec __attribute__((vector_size(CMIM_VECTOR_BYTES)));
typedef double UnalignedVec __attribute__((vector_size(CMIM_VECTOR_BYTES), aligned(8)));
typedef int64_t IntVec __attribute__((vector_size(CMIM_VECTOR_BYTES)));
typedef float FloatVec __attribute__((vector_size(CMIM_VECTOR_BYTES / 2)));
typedef float UnalignedFloatVec __attribute__((vector_size(CMIM_VECTOR_BYTES / 2), aligned(4)));

#define CMIM_INLINE static inline __attribute__((always_inline))

CMIM_INLINE Vec load(const double* p) {
  return *reinterpret_cast<const UnalignedVec*>(p);
}
// Spelt out: GCC 12 makes one conversion of this and several instructions of a convertvector.
CMIM_INLINE Vec load(const float* p) {
  const FloatVec f = *reinterpret_cast<const UnalignedFloatVec*>(p);
#if CMIM_VECTOR_BYTES == 64
  return Vec{f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7]};
#elif CMIM_VECTOR_BYTES == 32
  return Vec{f[0], f[1], f[2], f[3]};
#else
  return Vec{f[0], f[1]};
#endif
}

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

CMIM_INLINE double sum(Vec v) {
  IntVec lane;
  for (int l = 0; l < kLanes; ++l) lane[l] = l;
#pragma GCC unroll 4
  for (int half = kLanes / 2; half > 0; half /= 2) v += __builtin_shuffle(v, lane ^ half);
  return v[0];
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
