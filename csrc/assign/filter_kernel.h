// The float32 filter's body, included by one translation unit per ISA, each with its own vector
// width. Everything is in an anonymous namespace: a shared inline helper compiled for one ISA could
// otherwise replace another's.
#pragma once

#include "assign/filter.h"

namespace clustermim {
namespace {

typedef float FourFloats __attribute__((vector_size(16)));
typedef float EightFloats __attribute__((vector_size(32)));

// GCC 12 cannot index vectors whose size depends on a template parameter, hence the macro.
#define CMIM_VECTORS(name, lanes)                                                     \
  struct name {                                                                       \
    static constexpr int kLanes = lanes;                                              \
    typedef float Vec __attribute__((vector_size((lanes) * 4)));                      \
    typedef float UnalignedVec __attribute__((vector_size((lanes) * 4), aligned(4))); \
    typedef int32_t IntVec __attribute__((vector_size((lanes) * 4)));                 \
  }

template <typename Vectors, int kTileRows, int kStripRows>
struct Filter {
  static constexpr int kLanes = Vectors::kLanes;
  using Vec = typename Vectors::Vec;
  using UnalignedVec = typename Vectors::UnalignedVec;
  using IntVec = typename Vectors::IntVec;
  // Two vectors of centroids share each broadcast of a row's value.
  static constexpr int kColumns = 2 * kLanes;

  static Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
  static void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }

  static float sum(Vec v) {
    float total = 0.0f;
    for (int l = 0; l < kLanes; ++l) total += v[l];
    return total;
  }

  static void pack_rows(const float* x, int64_t stride, int64_t count, const float* centre,
                        float scale, int64_t dim, void* packed, int64_t row_bytes, float* norm2,
                        float* error2) {
    constexpr int kVectors = 4;
    constexpr int64_t kStep = kVectors * kLanes, kRun = kSquares * kStep;
    for (int64_t r = 0; r < count; ++r, x += stride) {
      float* out = reinterpret_cast<float*>(static_cast<char*>(packed) + r * row_bytes);
      double total = 0.0;
      for (int64_t d = 0; d < dim;) {
        const int64_t end = d + kRun < dim ? d + kRun : dim;
        Vec squares[kVectors] = {};
        for (; d + kStep <= end; d += kStep) {
          for (int v = 0; v < kVectors; ++v) {
            const int64_t at = d + v * kLanes;
            const Vec value = (load(x + at) - load(centre + at)) * scale;
            store(out + at, value);
            squares[v] += value * value;
          }
        }
        for (; d + kLanes <= end; d += kLanes) {
          const Vec value = (load(x + d) - load(centre + d)) * scale;
          store(out + d, value);
          squares[0] += value * value;
        }
        float tail = 0.0f;
        for (; d < end; ++d) {
          out[d] = (x[d] - centre[d]) * scale;
          tail += out[d] * out[d];
        }
        total += sum((squares[0] + squares[1]) + (squares[2] + squares[3])) + tail;
      }
      norm2[r] = static_cast<float>(total);
      error2[r] = 0.0f;
    }
  }

  static double norm2(const void* packed, int64_t dim) {
    const float* x = static_cast<const float*>(packed);
    double sums[8] = {};
    int64_t d = 0;
    for (; d + 8 <= dim; d += 8) {
      for (int l = 0; l < 8; ++l) sums[l] += static_cast<double>(x[d + l]) * x[d + l];
    }
    for (; d < dim; ++d) sums[0] += static_cast<double>(x[d]) * x[d];
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) +
           ((sums[4] + sums[5]) + (sums[6] + sums[7]));
  }

  static void pack_tile(const void* rows, int64_t row_bytes, int64_t dim, void* tile) {
    float* out = static_cast<float*>(tile);
    for (int64_t j = 0; j < kColumns; ++j) {
      const float* row =
          reinterpret_cast<const float*>(static_cast<const char*>(rows) + j * row_bytes);
      for (int64_t d = 0; d < dim; ++d) out[d * kColumns + j] = row[d];
    }
  }

  template <int kRows>
  static inline __attribute__((always_inline)) void score_tile(const char* rows, int64_t row_bytes,
                                                               const float* panel,
                                                               const float* bias, int64_t dim,
                                                               float* out, int64_t out_stride) {
    Vec total[kRows][2];
    for (int r = 0; r < kRows; ++r) total[r][0] = total[r][1] = Vec{};
    for (int64_t begin = 0; begin < dim; begin += kChain) {
      const int64_t end = begin + kChain < dim ? begin + kChain : dim;
      Vec sum[kRows][2] = {};
      for (int64_t d = begin; d < end; ++d) {
        const Vec c0 = load(panel + d * kColumns), c1 = load(panel + d * kColumns + kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const float value = reinterpret_cast<const float*>(rows + r * row_bytes)[d];
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
    const Vec b0 = load(bias), b1 = load(bias + kLanes);
    for (int r = 0; r < kRows; ++r) {
      store(out + r * out_stride, total[r][0] + b0);
      store(out + r * out_stride + kLanes, total[r][1] + b1);
    }
  }

  static void scores(const void* rows, int64_t row_bytes, int64_t count, const void* panels,
                     const float* bias, int64_t tiles, int64_t dim, float* out, int64_t out_stride,
                     const char*, int64_t) {
    const char* x = static_cast<const char*>(rows);
    for (int64_t t = 0; t < tiles; ++t) {
      const float* panel = static_cast<const float*>(panels) + t * dim * kColumns;
      const float* b = bias + t * kColumns;
      float* o = out + t * kColumns;
      int64_t r = 0;
      for (; r + kTileRows <= count; r += kTileRows) {
        score_tile<kTileRows>(x + r * row_bytes, row_bytes, panel, b, dim, o + r * out_stride,
                              out_stride);
      }
      for (; r + 4 <= count; r += 4) {
        score_tile<4>(x + r * row_bytes, row_bytes, panel, b, dim, o + r * out_stride, out_stride);
      }
      for (; r < count; ++r) {
        score_tile<1>(x + r * row_bytes, row_bytes, panel, b, dim, o + r * out_stride, out_stride);
      }
    }
  }

  static void row_max(const float* scores, int64_t stride, int64_t count, int64_t columns,
                      float* max, float*) {
    for (int64_t r = 0; r < count; ++r) {
      const float* s = scores + r * stride;
      Vec a = load(s), b = load(s + kLanes);
      for (int64_t k = kColumns; k < columns; k += kColumns) {
        const Vec next_a = load(s + k), next_b = load(s + k + kLanes);
        a = next_a > a ? next_a : a;
        b = next_b > b ? next_b : b;
      }
      a = b > a ? b : a;
      max[r] = largest(a);
    }
  }

  // Folds the upper half onto the lower until one lane is left.
  static float largest(Vec v) {
    IntVec lane;
    for (int l = 0; l < kLanes; ++l) lane[l] = l;
#pragma GCC unroll 4
    for (int half = kLanes / 2; half > 0; half /= 2) {
      const Vec other = __builtin_shuffle(v, lane ^ half);
      v = other > v ? other : v;
    }
    return v[0];
  }

  // One bit a lane of a comparison's result.
  static uint32_t bits_of(IntVec v) {
#if defined(__AVX2__)
    if constexpr (kLanes == 8) return __builtin_ia32_movmskps256((EightFloats)v);
#endif
#if defined(__SSE2__)
    if constexpr (kLanes == 4) return __builtin_ia32_movmskps((FourFloats)v);
#endif
    uint32_t bits = 0;
    for (int l = 0; l < kLanes; ++l) bits |= (v[l] & 1u) << l;
    return bits;
  }

  static void select(const float* scores, int64_t stride, const float*, const int32_t* rows,
                     int64_t count, int64_t columns, const float* threshold, int32_t first_column,
                     Hits hits) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t r = rows[i];
      const float* s = scores + r * stride;
      const Vec limit = Vec{} + threshold[i];
      for (int64_t k = 0; k < columns; k += kLanes) {
        for (uint32_t bits = bits_of(load(s + k) >= limit); bits; bits &= bits - 1) {
          const int64_t column = k + __builtin_ctz(bits);
          const int32_t n = hits.counts[r]++;
          if (n >= hits.capacity) continue;
          hits.columns[r * hits.capacity + n] = first_column + static_cast<int32_t>(column);
          hits.scores[r * hits.capacity + n] = s[column];
        }
      }
    }
  }

  static float squared_distance(const float* x, const float* c, int64_t dim) {
    Vec squares[4] = {};
    int64_t d = 0;
    for (; d + 4 * kLanes <= dim; d += 4 * kLanes) {
      for (int v = 0; v < 4; ++v) {
        const Vec difference = load(x + d + v * kLanes) - load(c + d + v * kLanes);
        squares[v] += difference * difference;
      }
    }
    for (; d + kLanes <= dim; d += kLanes) {
      const Vec difference = load(x + d) - load(c + d);
      squares[0] += difference * difference;
    }
    float tail = 0.0f;
    for (; d < dim; ++d) tail += (x[d] - c[d]) * (x[d] - c[d]);
    return sum((squares[0] + squares[1]) + (squares[2] + squares[3])) + tail;
  }

  static float dot(const float* x, const float* y, int64_t dim) {
    Vec sums[4] = {};
    int64_t d = 0;
    for (; d + 4 * kLanes <= dim; d += 4 * kLanes) {
      for (int v = 0; v < 4; ++v) sums[v] += load(x + d + v * kLanes) * load(y + d + v * kLanes);
    }
    float tail = 0.0f;
    for (; d < dim; ++d) tail += x[d] * y[d];
    return sum((sums[0] + sums[1]) + (sums[2] + sums[3])) + tail;
  }

  static void subtract(float factor, const float* x, float* y, int64_t dim) {
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) store(y + d, load(y + d) - factor * load(x + d));
    for (; d < dim; ++d) y[d] -= factor * x[d];
  }

  static void nothing() {}

  static constexpr FilterKernel kernel() {
    return {Format::float32,
            kColumns,
            kStripRows,
            1,
            pack_rows,
            norm2,
            pack_tile,
            nothing,
            nothing,
            scores,
            {row_max, select, squared_distance, dot, subtract}};
  }
};

}  // namespace
}  // namespace clustermim
