// The filter's body, included by one translation unit per ISA, each with its own vector width.
// Everything is in an anonymous namespace: a shared inline helper compiled for one ISA could
// otherwise replace another's.
#pragma once

#include "assign/filter.h"

namespace clustermim {
namespace {

// GCC 12 cannot index vectors whose size depends on a template parameter, hence the macro.
#define CMIM_VECTORS(name, lanes)                                                          \
  struct name {                                                                            \
    static constexpr int kLanes = lanes;                                                   \
    typedef float Vec __attribute__((vector_size((lanes) * 4)));                           \
    typedef float UnalignedVec __attribute__((vector_size((lanes) * 4), aligned(4)));      \
    typedef int32_t IntVec __attribute__((vector_size((lanes) * 4)));                      \
    typedef int32_t UnalignedIntVec __attribute__((vector_size((lanes) * 4), aligned(4))); \
  }

template <typename Vectors, int kTileRows>
struct Filter {
  static constexpr int kLanes = Vectors::kLanes;
  using Vec = typename Vectors::Vec;
  using UnalignedVec = typename Vectors::UnalignedVec;
  using IntVec = typename Vectors::IntVec;
  using UnalignedIntVec = typename Vectors::UnalignedIntVec;
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
  static inline __attribute__((always_inline)) void update(float* state, Vec score,
                                                           int32_t column) {
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
      store(state + r * kState, Vec{} - __FLT_MAX__);
      store(state + r * kState + kLanes, Vec{} - __FLT_MAX__);
      store(state + r * kState + 2 * kLanes, Vec{});
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
      reduce(state + r * kState, best + r, second + r, index + r);
    }
  }

  // The lanes' bests to the row's best and second best, folding the upper half onto the lower.
  static inline __attribute__((always_inline)) void reduce(const float* state, float* best,
                                                           float* second, int32_t* index) {
    IntVec lane;
    for (int l = 0; l < kLanes; ++l) lane[l] = l;
    Vec top = load(state), next = load(state + kLanes);
    IntVec column = *reinterpret_cast<const UnalignedIntVec*>(state + 2 * kLanes) + lane;
#pragma GCC unroll 4
    for (int half = kLanes / 2; half > 0; half /= 2) {
      const IntVec from = lane ^ half;
      const Vec other_top = __builtin_shuffle(top, from),
                other_next = __builtin_shuffle(next, from);
      const IntVec other_column = __builtin_shuffle(column, from);
      const IntVec better = other_top > top;
      const Vec lower = better ? top : other_top;
      next = other_next > next ? other_next : next;
      next = lower > next ? lower : next;
      top = better ? other_top : top;
      column = better ? other_column : column;
    }
    *best = top[0];
    *second = next[0];
    *index = column[0];
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
