// Searching rows of scores, for units compiled for AVX-512.
#pragma once

#include <immintrin.h>

#include "assign/filter.h"

namespace clustermim {
namespace {

constexpr int kLanes = 16;
constexpr int64_t kMaxColumns = 1024;  // of one call

inline void row_max(const float* scores, int64_t stride, int64_t count, int64_t columns,
                    float* max) {
  for (int64_t r = 0; r < count; ++r) {
    const float* s = scores + r * stride;
    __m512 a = _mm512_loadu_ps(s), b = a;
    int64_t k = kLanes;
    for (; k + 2 * kLanes <= columns; k += 2 * kLanes) {
      a = _mm512_max_ps(a, _mm512_loadu_ps(s + k));
      b = _mm512_max_ps(b, _mm512_loadu_ps(s + k + kLanes));
    }
    if (k < columns) a = _mm512_max_ps(a, _mm512_loadu_ps(s + k));
    max[r] = _mm512_reduce_max_ps(_mm512_max_ps(a, b));
  }
}

inline void append(const float* scores, int64_t row, int32_t column, int32_t first_column,
                   const Hits& hits) {
  const int32_t n = hits.counts[row]++;
  if (n >= hits.capacity) return;
  hits.columns[row * hits.capacity + n] = first_column + column;
  hits.scores[row * hits.capacity + n] = scores[column];
}

inline void select(const float* scores, int64_t stride, int64_t count, int64_t columns,
                   const float* threshold, int32_t first_column, Hits hits) {
  // All comparisons first: which column is above is unpredictable, that one is in a row is not.
  alignas(64) uint16_t above[32][kMaxColumns / kLanes];
  const int64_t groups = columns / kLanes;
  for (int64_t begin = 0; begin < count; begin += 32) {
    const int64_t rows = count - begin < 32 ? count - begin : 32;
    for (int64_t r = 0; r < rows; ++r) {
      const float* s = scores + (begin + r) * stride;
      const __m512 limit = _mm512_set1_ps(threshold[begin + r]);
      for (int64_t g = 0; g < groups; ++g) {
        above[r][g] = _mm512_cmp_ps_mask(_mm512_loadu_ps(s + g * kLanes), limit, _CMP_GE_OQ);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      const float* s = scores + (begin + r) * stride;
      for (int64_t g = 0; g < groups; g += 32) {
        const __mmask32 in_use = groups - g >= 32 ? ~0u : (1u << (groups - g)) - 1;
        const __m512i words = _mm512_maskz_loadu_epi16(in_use, &above[r][g]);
        for (uint32_t in = _mm512_test_epi16_mask(words, words); in; in &= in - 1) {
          const int32_t group = static_cast<int32_t>(g) + __builtin_ctz(in);
          for (uint32_t bits = above[r][group]; bits; bits &= bits - 1) {
            append(s, begin + r, group * kLanes + __builtin_ctz(bits), first_column, hits);
          }
        }
      }
    }
  }
}

inline float squared_distance(const float* x, const float* c, int64_t dim) {
  __m512 squares[4] = {};
  int64_t d = 0;
  for (; d + 4 * kLanes <= dim; d += 4 * kLanes) {
    for (int v = 0; v < 4; ++v) {
      const __m512 difference =
          _mm512_sub_ps(_mm512_loadu_ps(x + d + v * kLanes), _mm512_loadu_ps(c + d + v * kLanes));
      squares[v] = _mm512_fmadd_ps(difference, difference, squares[v]);
    }
  }
  for (; d < dim; d += kLanes) {
    const __mmask16 in = dim - d >= kLanes ? 0xffff : (1u << (dim - d)) - 1;
    const __m512 difference =
        _mm512_sub_ps(_mm512_maskz_loadu_ps(in, x + d), _mm512_maskz_loadu_ps(in, c + d));
    squares[0] = _mm512_fmadd_ps(difference, difference, squares[0]);
  }
  return _mm512_reduce_add_ps(
      _mm512_add_ps(_mm512_add_ps(squares[0], squares[1]), _mm512_add_ps(squares[2], squares[3])));
}

}  // namespace
}  // namespace clustermim
