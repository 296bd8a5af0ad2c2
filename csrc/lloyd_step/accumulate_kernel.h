// The body of accumulate.h, included by one translation unit per ISA, which defines
// CMIM_VECTOR_BYTES and CMIM_TILE_ROWS (rows of a centroid added at once: as many as have their 16
// lanes in registers) first. Compiled without contraction (CMakeLists.txt).
#pragma once

#include "core/double_vector.h"
#include "lloyd_step/accumulate.h"

namespace clustermim {
namespace {

constexpr int kTileRows = CMIM_TILE_ROWS;
constexpr int kStep = 16;  // lanes of a distance
constexpr int kVectors = kStep / kLanes;

CMIM_INLINE void store(double* p, Vec v) {
  *reinterpret_cast<UnalignedVec*>(p) = v;
}

// Sixteen columns of kRows rows.
template <int kKind, int kRows, typename X, typename C>
CMIM_INLINE void add_step(const X* const (&x)[kRows], const double (&weight)[kRows],
                          const C* centroid, double* sum, Vec (&squares)[kRows][kVectors]) {
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    const Vec c = load(centroid + v * kLanes);
    Vec total = load(sum + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec value = load(x[r] + v * kLanes);
      if constexpr (kKind == kPlain) {
        total += value;
      } else if constexpr (kKind == kWeighted) {
        total += weight[r] * value;
      } else {
        total = reinterpret_cast<Vec>(reinterpret_cast<IntVec>(total) +
                                      reinterpret_cast<IntVec>(value + kQuantisedOffset));
      }
      const Vec difference = value - c;
      squares[r][v] += difference * difference;
    }
    store(sum + v * kLanes, total);
  }
}

// The columns left over by steps of sixteen: zeros fill them up.
template <int kKind, int kRows, typename X, typename C>
static __attribute__((noinline)) void add_last(const X* const (&x)[kRows],
                                               const double (&weight)[kRows], const C* centroid,
                                               int64_t left, double* sum, double* squares) {
  X buffer[kRows][kStep] = {};
  C last_centroid[kStep] = {};
  double last_sum[kStep] = {};
  const X* last_x[kRows];
  Vec lanes[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int64_t i = 0; i < left; ++i) buffer[r][i] = x[r][i];
    last_x[r] = buffer[r];
    for (int v = 0; v < kVectors; ++v) lanes[r][v] = load(squares + r * kStep + v * kLanes);
  }
  for (int64_t i = 0; i < left; ++i) last_centroid[i] = centroid[i];
  __builtin_memcpy(last_sum, sum, left * sizeof(double));
  add_step<kKind, kRows>(last_x, weight, last_centroid, last_sum, lanes);
  __builtin_memcpy(sum, last_sum, left * sizeof(double));
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) store(squares + r * kStep + v * kLanes, lanes[r][v]);
  }
}

CMIM_INLINE double fold(const double* lanes) {
  Vec sums[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) sums[v] = load(lanes + v * kLanes);
#pragma GCC unroll 8
  for (int half = kVectors / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int v = 0; v < half; ++v) sums[v] += sums[v + half];
  }
  return sum(sums[0]);
}

// Rows at positions row[0 .. kRows) of the block; `next` are rows whose values will be needed.
// Squares are added to squares[r * kStep ...].
template <int kKind, int kRows, bool kFetch, typename X, typename C>
CMIM_INLINE void add_tile(const BlockRows<X>& rows, const int32_t (&row)[kRows],
                          const int32_t (&next_row)[kRows], const C* centroid, int64_t dim,
                          double* sum, double* squares) {
  constexpr int kLine = 64 / static_cast<int>(sizeof(X));  // values of one cache line
  const X *x[kRows], *next[kRows];
  double weight[kRows];
  Vec lanes[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    x[r] = rows.x + row[r] * rows.x_stride;
    next[r] = rows.x + next_row[r] * rows.x_stride;
    weight[r] = kKind == kWeighted ? rows.weights[row[r]] : 0.0;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) lanes[r][v] = load(squares + r * kStep + v * kLanes);
  }
  // One line of what is upcoming with every step.
  const char* upcoming = rows.upcoming->begin;
  const int64_t steps = dim / kStep;
  const bool any_upcoming = upcoming + steps * 64 <= rows.upcoming->end;
  rows.upcoming->begin = any_upcoming ? upcoming + steps * 64 : rows.upcoming->begin;
  const int64_t advance = any_upcoming ? 64 : 0;
  int64_t d = 0;
  for (; d + kStep <= dim; d += kStep, upcoming += advance) {
    __builtin_prefetch(upcoming, 0, 2);
#pragma GCC unroll 8
    for (int r = 0; kFetch && r < kRows; ++r) {
      for (int line = 0; line < kStep; line += kLine) __builtin_prefetch(next[r] + d + line);
    }
    const X* at[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) at[r] = x[r] + d;
    add_step<kKind, kRows>(at, weight, centroid + d, sum + d, lanes);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store(squares + r * kStep + v * kLanes, lanes[r][v]);
  }
  if (d < dim) {
    const X* at[kRows];
    for (int r = 0; r < kRows; ++r) at[r] = x[r] + d;
    add_last<kKind, kRows>(at, weight, centroid + d, dim - d, sum + d, squares);
  }
}

template <int kKind, int kRows, typename X, typename C>
CMIM_INLINE void add_group_tile(const BlockRows<X>& rows, const int32_t* order, int64_t index,
                                int64_t ahead, const C* centroid, int64_t dim, double* sum) {
  int32_t row[kRows], next[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    row[r] = order[r];
    next[r] = r < ahead ? order[kRows + r] : order[r];
  }
  if constexpr (kKind == kPlain) {
    add_tile<kKind, kRows, true>(rows, row, next, centroid, dim, sum,
                                 rows.squares + index % kDistanceSums * kStep);
  } else {
    double squares[kRows][kStep] = {};
    add_tile<kKind, kRows, true>(rows, row, next, centroid, dim, sum, squares[0]);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) rows.distances[row[r]] = fold(squares[r]);
  }
}

template <int kKind, typename X, typename C>
static void add_group(const BlockRows<X>& rows, const int32_t* order, int64_t count, int64_t ahead,
                      const CentroidSums<C>& to, int64_t id) {
  const C* c = to.centroids + id * to.stride;
  double* sum = to.sums + id * to.dim;
  int64_t i = 0;
  for (; i + kTileRows <= count; i += kTileRows) {
    add_group_tile<kKind, kTileRows>(rows, order + i, i, count - i - kTileRows + ahead, c, to.dim,
                                     sum);
  }
  if (kTileRows > 2 && i + 2 <= count) {
    add_group_tile<kKind, 2>(rows, order + i, i, count - i - 2 + ahead, c, to.dim, sum);
    i += 2;
  }
  if (i < count) add_group_tile<kKind, 1>(rows, order + i, i, ahead, c, to.dim, sum);
}

template <int kKind, typename X, typename C>
static void add_rows(const BlockRows<X>& rows, const int64_t* ids, int64_t count,
                     const CentroidSums<C>& to) {
  for (int64_t i = 0; i < count; ++i) {
    if (ids[i] < 0) continue;
    const C* c = to.centroids + ids[i] * to.stride;
    double* sum = to.sums + ids[i] * to.dim;
    const int32_t row[1] = {static_cast<int32_t>(i)};
    if constexpr (kKind == kPlain) {
      add_tile<kKind, 1, false>(rows, row, row, c, to.dim, sum,
                                rows.squares + i % kDistanceSums * kStep);
    } else {
      double squares[kStep] = {};
      add_tile<kKind, 1, false>(rows, row, row, c, to.dim, sum, squares);
      rows.distances[i] = fold(squares);
    }
  }
}

template <typename X, typename C>
constexpr AccumulateKernel<X, C> kernel() {
  return {{&add_group<kPlain, X, C>, &add_group<kWeighted, X, C>, &add_group<kQuantised, X, C>},
          {&add_rows<kPlain, X, C>, &add_rows<kWeighted, X, C>, &add_rows<kQuantised, X, C>}};
}

constexpr AccumulateKernels kThisUnit = {kernel<float, float>(), kernel<float, double>(),
                                         kernel<double, double>()};

}  // namespace
}  // namespace clustermim
