// Searching rows of scores, for units compiled for AVX-512.
#pragma once

#include <immintrin.h>

#include "assign/filter.h"

namespace clustermim {
namespace {

constexpr int kLanes = 16;
constexpr int64_t kGroup = 8;  // vectors of scores that share a vector of peaks

// A peak is the largest score of one lane in kGroup vectors.
inline void row_max(const float* scores, int64_t stride, int64_t count, int64_t columns, float* max,
                    float* peaks) {
  for (int64_t r = 0; r < count; ++r) {
    const float* s = scores + r * stride;
    __m512 all = _mm512_set1_ps(-__builtin_inff());
    float* to = peaks + r * kPeaks;
    for (int64_t k = 0; k < columns; k += kGroup * kLanes, to += kLanes) {
      __m512 a = _mm512_loadu_ps(s + k), b = a;
      if (k + kGroup * kLanes <= columns) {
        for (int v = 1; v < kGroup; v += 2) {
          a = _mm512_max_ps(a, _mm512_loadu_ps(s + k + v * kLanes));
          if (v + 1 < kGroup) b = _mm512_max_ps(b, _mm512_loadu_ps(s + k + (v + 1) * kLanes));
        }
      } else {
        for (int64_t c = k + kLanes; c < columns; c += kLanes) {
          a = _mm512_max_ps(a, _mm512_loadu_ps(s + c));
        }
      }
      a = _mm512_max_ps(a, b);
      _mm512_storeu_ps(to, a);
      all = _mm512_max_ps(all, a);
    }
    max[r] = _mm512_reduce_max_ps(all);
  }
}

inline void select(const float* scores, int64_t stride, const float* peaks, const int32_t* rows,
                   int64_t count, int64_t columns, const float* threshold, int32_t first_column,
                   Hits hits) {
  const int64_t groups = (columns + kGroup * kLanes - 1) / (kGroup * kLanes);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t r = rows[i];
    const float *s = scores + r * stride, *peak = peaks + r * kPeaks;
    const __m512 limit = _mm512_set1_ps(threshold[i]);
    uint32_t above = 0;
    for (int64_t g = 0; g < groups; ++g) {
      const __mmask16 in =
          _mm512_cmp_ps_mask(_mm512_loadu_ps(peak + g * kLanes), limit, _CMP_GE_OQ);
      above |= static_cast<uint32_t>(in != 0) << g;
    }
    int32_t n = hits.counts[r];
    for (; above; above &= above - 1) {
      const int64_t begin = __builtin_ctz(above) * kGroup * kLanes;
      const int64_t end = begin + kGroup * kLanes < columns ? begin + kGroup * kLanes : columns;
      for (int64_t k = begin; k < end; k += 4 * kLanes) {
        uint64_t bits = 0;
        for (int64_t v = 0; v < 4 && k + v * kLanes < end; ++v) {
          const __mmask16 in =
              _mm512_cmp_ps_mask(_mm512_loadu_ps(s + k + v * kLanes), limit, _CMP_GE_OQ);
          bits |= static_cast<uint64_t>(in) << (v * kLanes);
        }
        for (; bits; bits &= bits - 1, ++n) {
          if (n >= hits.capacity) continue;
          const int64_t column = k + __builtin_ctzll(bits);
          hits.columns[r * hits.capacity + n] = first_column + static_cast<int32_t>(column);
          hits.scores[r * hits.capacity + n] = s[column];
        }
      }
    }
    hits.counts[r] = n;
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
