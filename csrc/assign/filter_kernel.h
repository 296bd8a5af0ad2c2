// The filter's body, included by one translation unit per ISA, each with its own vector width.
// Everything is in an anonymous namespace: a shared inline helper compiled for one ISA could otherwise
// replace another's.
#pragma once

#include "assign/filter.h"

namespace clustermim {
namespace {

template <int kLanes, int kTileRows>
struct Filter {
  typedef float Vec __attribute__((vector_size(kLanes * 4)));
  typedef float UnalignedVec __attribute__((vector_size(kLanes * 4), aligned(4)));
  typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
  typedef int32_t UnalignedIntVec __attribute__((vector_size(kLanes * 4), aligned(4)));
  // Two vectors of centroids share each broadcast of a row's value.
  static constexpr int kColumns = 2 * kLanes;

  static Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
  static void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }

  template <int kRows>
  static inline __attribute__((always_inline)) void dot_tile(const float* x, int64_t x_stride,
                                                             const float* panel, int64_t dim,
                                                             Vec (&total)[kRows][2]) {
    for (int r = 0; r < kRows; ++r) total[r][0] = total[r][1] = Vec{};
    for (int64_t begin = 0; begin < dim; begin += kChain) {
      const int64_t end = begin + kChain < dim ? begin + kChain : dim;
      Vec sum[kRows][2] = {};
      for (int64_t d = begin; d < end; ++d) {
        const Vec c0 = load(panel + d * kColumns), c1 = load(panel + d * kColumns + kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const float value = x[r * x_stride + d];
          sum[r][0] += value * c0;
          sum[r][1] += value * c1;
        }
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        total[r][0] += sum[r][0];
        total[r][1] += sum[r][1];
      }
    }
  }

  // state: per row kLanes best, kLanes second best, kLanes indices of the best.
  static inline __attribute__((always_inline)) void update(float* state, Vec score, int32_t column) {
    Vec best = load(state), second = load(state + kLanes);
    IntVec index = *reinterpret_cast<const UnalignedIntVec*>(state + 2 * kLanes);
    const IntVec better = score > best;
    const Vec lower = better ? best : score;
    second = lower > second ? lower : second;
    best = better ? score : best;
    index = better ? IntVec{} + column : index;
    store(state, best);
    store(state + kLanes, second);
    *reinterpret_cast<UnalignedIntVec*>(state + 2 * kLanes) = index;
  }

  template <int kRows>
  static inline __attribute__((always_inline)) void top2_tile(const float* x, int64_t x_stride,
                                                              const float* panel, const float* bias,
                                                              int64_t dim, int32_t first_column,
                                                              float* state) {
    Vec t[kRows][2];
    dot_tile<kRows>(x, x_stride, panel, dim, t);
    const Vec b0 = load(bias), b1 = load(bias + kLanes);
    for (int r = 0; r < kRows; ++r) {
      update(state + r * 3 * kLanes, t[r][0] - b0, first_column);
      update(state + r * 3 * kLanes, t[r][1] - b1, first_column + kLanes);
    }
  }

  static void top2(const float* x, int64_t x_stride, int64_t num_rows, const float* panels,
                   const float* bias, int64_t num_panels, int64_t dim, float* state, float* best,
                   float* second, int32_t* index) {
    constexpr int kState = 3 * kLanes;
    for (int64_t r = 0; r < num_rows; ++r) {
      for (int l = 0; l < 2 * kLanes; ++l) state[r * kState + l] = -__FLT_MAX__;
      for (int l = 0; l < kLanes; ++l) reinterpret_cast<int32_t*>(state + r * kState)[2 * kLanes + l] = 0;
    }
    for (int64_t p = 0; p < num_panels; ++p) {
      const float* panel = panels + p * dim * kColumns;
      const float* b = bias + p * kColumns;
      const int32_t column = static_cast<int32_t>(p * kColumns);
      int64_t r = 0;
      for (; r + kTileRows <= num_rows; r += kTileRows) {
        top2_tile<kTileRows>(x + r * x_stride, x_stride, panel, b, dim, column, state + r * kState);
      }
      for (; r + 4 <= num_rows; r += 4) {
        top2_tile<4>(x + r * x_stride, x_stride, panel, b, dim, column, state + r * kState);
      }
      for (; r < num_rows; ++r) {
        top2_tile<1>(x + r * x_stride, x_stride, panel, b, dim, column, state + r * kState);
      }
    }
    for (int64_t r = 0; r < num_rows; ++r) {
      const float* s = state + r * kState;
      const int32_t* columns = reinterpret_cast<const int32_t*>(s) + 2 * kLanes;
      float top = -__FLT_MAX__, next = -__FLT_MAX__;
      int32_t lane_of_top = 0;
      for (int l = 0; l < kLanes; ++l) {
        const float lower = s[l] > top ? top : s[l];
        if (s[l] > top) {
          top = s[l];
          lane_of_top = l;
        }
        if (lower > next) next = lower;
        if (s[kLanes + l] > next) next = s[kLanes + l];
      }
      best[r] = top;
      second[r] = next;
      index[r] = columns[lane_of_top] + lane_of_top;
    }
  }

  static void scores(const float* x, const float* panels, const float* bias, int64_t num_panels,
                     int64_t dim, float* out) {
    for (int64_t p = 0; p < num_panels; ++p) {
      Vec t[1][2];
      dot_tile<1>(x, 0, panels + p * dim * kColumns, dim, t);
      store(out + p * kColumns, t[0][0] - load(bias + p * kColumns));
      store(out + p * kColumns + kLanes, t[0][1] - load(bias + p * kColumns + kLanes));
    }
  }
};

}  // namespace
}  // namespace clustermim
