// Exact dot products of float32 values: a few rows with a few centroids.
#pragma once

#include <cstdint>

namespace clustermim {

constexpr int kExactRows = 4, kExactCentroids = 8;

// Rows [rows, stride] in float64, zeros from dim to a multiple of 8; rows <= kExactRows. A row's
// sum begins at start[row] (ExactDotKernel).
struct ExactRows {
  const double* x;
  int64_t stride;
  int rows;
  double start[kExactRows];
};

// x.c of each row and centroid, in the first `rows` of each `high` and `low`.
struct ExactDots {
  double high[kExactCentroids][kExactRows], low[kExactCentroids][kExactRows];
};

// Each product is exact in float64. It is added to a sum that begins at 1.5 * 2^(S + 52) and stays
// in that binade, so that the sum takes multiples of 2^S; what it does not take is exact as well
// and goes to a second sum. exact_nearest.cpp shows when that one rounds nothing either. So every
// result is the same in any order and on any path, with or without fused multiply-add.
struct ExactDotKernel {
  using Dots = void (*)(const ExactRows& rows, const float* const* centroids, int count,
                        int64_t dim, ExactDots* dots);
  Dots two_sums;  // high + low = x.c, high in multiples of 2^S; count <= kExactCentroids
  Dots one_sum;   // the same where one sum takes all: high = x.c, low = 0
};

extern const ExactDotKernel kExactDotGeneric;
#if defined(__x86_64__)
extern const ExactDotKernel kExactDotAvx2;
extern const ExactDotKernel kExactDotAvx512;
#endif

}  // namespace clustermim
