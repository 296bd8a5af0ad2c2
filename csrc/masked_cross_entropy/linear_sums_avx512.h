// What the linear loss does with vectors alone: exponentials, sums of lanes and of rows, the last
// rounding. For units compiled for AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>

#define CMIM_VECTOR_BYTES 64
#include "core/inline.h"
#include "masked_cross_entropy/linear_pack_avx512.h"
#include "masked_cross_entropy/row_vector.h"

namespace clustermim {
namespace {

CMIM_INLINE __m512 exp_of(__m512 x) {
  return (__m512)FloatVector::exp((FloatVector::Vec)x);
}

CMIM_INLINE __m512 finite_reference(__m512 max) {
  const __m512 lowest = _mm512_set1_ps(FloatVector::kLowest);
  return _mm512_mask_mov_ps(max, _mm512_cmp_ps_mask(max, lowest, _CMP_EQ_OQ), _mm512_setzero_ps());
}

// The 16 sums of 16 vectors' lanes.
CMIM_INLINE __m512 sum_lanes(const __m512 v[16]) {
  __m512 a[8], b[4], c[2];
  for (int i = 0; i < 8; ++i) {
    a[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]),
                         _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
  }
  for (int i = 0; i < 4; ++i) {
    const __m512d x = _mm512_castps_pd(a[2 * i]), y = _mm512_castps_pd(a[2 * i + 1]);
    b[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  }
  for (int i = 0; i < 2; ++i) {
    c[i] = _mm512_add_ps(_mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0x88),
                         _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0xdd));
  }
  return _mm512_add_ps(_mm512_shuffle_f32x4(c[0], c[1], 0x88),
                       _mm512_shuffle_f32x4(c[0], c[1], 0xdd));
}

void store_row(const float* gradient, int64_t dim, float factor, const float* direction,
               uint16_t* row) {
  const __m512 f = _mm512_set1_ps(-factor);
  for (int64_t d = 0; d < dim; d += kStepValues) {
    __m512 low = _mm512_load_ps(gradient + d), high = _mm512_load_ps(gradient + d + 16);
    if (direction) {
      low = _mm512_fmadd_ps(f, _mm512_loadu_ps(direction + d), low);
      high = _mm512_fmadd_ps(f, _mm512_loadu_ps(direction + d + 16), high);
    }
    const int64_t left = dim - d;
    const __mmask32 in = left >= 32 ? ~0u : (1u << left) - 1;
    _mm512_mask_storeu_epi16(row + d, in, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
}

// out [32] = the mean over `count` rows of 32 values from 32 * step on. A sum could overflow.
void mean_rows(const uint16_t* rows, int64_t stride, int64_t count, int64_t dim, int64_t step,
               float* out) {
  const __m512 part = _mm512_set1_ps(1.0f / static_cast<float>(count));
  __m512 low = _mm512_setzero_ps(), high = low;
  for (int64_t i = 0; i < count; ++i) {
    const __m512i words = load_words(rows + i * stride, step * kStepValues, dim);
    const auto widened = [](__m256i half) {
      return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    };
    low = _mm512_fmadd_ps(part, widened(_mm512_castsi512_si256(words)), low);
    high = _mm512_fmadd_ps(part, widened(_mm512_extracti64x4_epi64(words, 1)), high);
  }
  _mm512_storeu_ps(out, low);
  _mm512_storeu_ps(out + 16, high);
}

void scaled_sum(const char* pairs, int64_t pairs_stride, int64_t strips, const float* scale,
                int64_t step, float* out) {
  for (int tile = 0; tile < 2; ++tile) {
    __m512 all = _mm512_loadu_ps(out + 16 * tile);
    for (int64_t s = 0; s < strips; ++s) {
      const char* in = pairs + s * pairs_stride + (2 * step + tile) * kTileBytes;
      __m512 sum = _mm512_setzero_ps();
      for (int p = 0; p < 16; ++p) {
        const __m512i two = _mm512_load_si512(in + p * 64);
        const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(two, 16));
        const __m512 odd = _mm512_castsi512_ps(
            _mm512_and_si512(two, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
        sum = _mm512_fmadd_ps(_mm512_set1_ps(scale[s * kStripTokens + 2 * p]), even, sum);
        sum = _mm512_fmadd_ps(_mm512_set1_ps(scale[s * kStripTokens + 2 * p + 1]), odd, sum);
      }
      all = _mm512_add_ps(all, sum);
    }
    _mm512_storeu_ps(out + 16 * tile, all);
  }
}

}  // namespace
}  // namespace clustermim
