// Rows of pixels, for units compiled for AVX-512 with VNNI.
#pragma once

#include <immintrin.h>

#include "assign/filter.h"
#include "assign/pixels.h"

namespace clustermim {
namespace {

inline void copy_run(const uint8_t* from, uint8_t* to, int64_t run) {
  int64_t b = 0;
  for (; b + 64 <= run; b += 64) _mm512_storeu_si512(to + b, _mm512_loadu_si512(from + b));
  if (b < run) {
    const __mmask64 in = ~0ull >> (64 - (run - b));
    _mm512_mask_storeu_epi8(to + b, in, _mm512_maskz_loadu_epi8(in, from + b));
  }
}

// Asks for the lines of the patch at `ahead`: image rows are too short for the hardware to guess.
inline void ask_for(const PatchRuns& runs, const uint8_t* ahead, int64_t bytes) {
  for (int64_t i = 0; i < runs.planes; ++i) {
    const uint8_t* line = ahead + i * runs.plane_stride;
    for (int64_t j = 0; j < runs.lines; ++j, line += runs.line_stride) {
      for (int64_t b = 0; b < bytes; b += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(line + b), _MM_HINT_T0);
      }
    }
  }
}

inline void pack_rows(const PatchRuns& runs, const uint8_t* patch, const uint8_t* ahead,
                      int64_t count, uint8_t* rows, int64_t row_bytes) {
  int64_t asked = 0;  // bytes to the right of `ahead`
  for (int64_t r = 0; r < count; ++r, patch += runs.next) {
    const int64_t wanted = (r + 1) * runs.next;
    if (ahead && asked < wanted) {
      const int64_t bytes = (wanted - asked + 63) / 64 * 64;
      ask_for(runs, ahead + asked, bytes);
      asked += bytes;
    }
    uint8_t* to = rows + r * row_bytes;
    for (int64_t i = 0; i < runs.planes; ++i) {
      const uint8_t* line = patch + i * runs.plane_stride;
      if (runs.run == 16) {
        for (int64_t j = 0; j < runs.lines; ++j, line += runs.line_stride, to += 16) {
          _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                           _mm_loadu_si128(reinterpret_cast<const __m128i*>(line)));
        }
      } else {
        for (int64_t j = 0; j < runs.lines; ++j, line += runs.line_stride, to += runs.run) {
          copy_run(line, to, runs.run);
        }
      }
    }
  }
}

// Sums of squares of pairs of neighbours: 2 (2^14) at most.
inline __m512i square_pairs(const uint8_t* bytes) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
  const __m512i shifted = _mm512_sub_epi16(_mm512_cvtepu8_epi16(raw), _mm512_set1_epi16(128));
  return _mm512_madd_epi16(shifted, shifted);
}

inline float grouped_norm2(const uint8_t* row, int64_t padded_dim, const float* group_weights) {
  const int64_t groups = padded_dim / 64;
  double total = 0.0;
  for (int64_t g = 0; g < groups;) {
    const int64_t end = g + kSquares < groups ? g + kSquares : groups;
    __m512 sum = _mm512_setzero_ps();
    for (; g < end; ++g) {
      const __m512i squares =
          _mm512_add_epi32(square_pairs(row + g * 64), square_pairs(row + g * 64 + 32));
      sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(squares), _mm512_set1_ps(group_weights[g]), sum);
    }
    total += _mm512_reduce_add_ps(sum);
  }
  return static_cast<float>(total);
}

inline float weighted_norm2(const uint8_t* row, int64_t padded_dim, const float* weights) {
  double total = 0.0;
  for (int64_t d = 0; d < padded_dim;) {
    const int64_t end = d + 64 * kSquares < padded_dim ? d + 64 * kSquares : padded_dim;
    __m512 sums[4] = {};
    for (; d < end; d += 64) {
      for (int v = 0; v < 4; ++v) {
        const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + d + 16 * v));
        const __m512 q =
            _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_cvtepu8_epi32(raw), _mm512_set1_epi32(128)));
        sums[v] =
            _mm512_fmadd_ps(_mm512_mul_ps(q, q), _mm512_loadu_ps(weights + d + 16 * v), sums[v]);
      }
    }
    total += _mm512_reduce_add_ps(
        _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
  }
  return static_cast<float>(total);
}

inline void norms(const uint8_t* rows, int64_t row_bytes, int64_t count, int64_t padded_dim,
                  const float* weights, const float* group_weights, float* norm2) {
  for (int64_t r = 0; r < count; ++r) {
    const uint8_t* row = rows + r * row_bytes;
    norm2[r] = group_weights ? grouped_norm2(row, padded_dim, group_weights)
                             : weighted_norm2(row, padded_dim, weights);
  }
}

inline __m512 score(__m512i sum, __m512i start, __m512 sigma, __m512 bias) {
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(sum, start)), sigma, bias);
}

inline uint32_t dot(const uint8_t* row, const int8_t* hi, const int8_t* lo, int64_t padded_dim) {
  __m512i high = _mm512_setzero_si512(), low = high;
  for (int64_t d = 0; d < padded_dim; d += 64) {
    const __m512i pixels = _mm512_loadu_si512(row + d);
    high = _mm512_dpbusd_epi32(high, pixels, _mm512_loadu_si512(hi + d));
    low = _mm512_dpbusd_epi32(low, pixels, _mm512_loadu_si512(lo + d));
  }
  const __m512i sums = _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
  // By hand: GCC's reduction adds signed numbers, whose overflow is undefined.
  const __m256i eight =
      _mm256_add_epi32(_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64(sums, 1));
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti64x2_epi64(eight, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(four));
}

inline __mmask8 lanes_left(int64_t left) {
  return static_cast<__mmask8>(left >= 8 ? 0xff : (1 << left) - 1);
}

inline CentredSums centre(const double* c, const int32_t* feature, const double* origin,
                          const double* step, double scale, int64_t dim, double* out) {
  const __m512d factor = _mm512_set1_pd(scale);
  __m512d norm2 = _mm512_setzero_pd(), sum = norm2, most = norm2;
  for (int64_t k = 0; k < dim; k += 8) {
    const __mmask8 in = lanes_left(dim - k);
    const __m256i index = _mm256_maskz_loadu_epi32(in, feature + k);
    const __m512d value = _mm512_mask_i32gather_pd(_mm512_setzero_pd(), in, index, c, 8);
    const __m512d centred = _mm512_maskz_mul_pd(
        in, _mm512_sub_pd(value, _mm512_maskz_loadu_pd(in, origin + k)), factor);
    const __m512d size = _mm512_abs_pd(_mm512_mul_pd(centred, _mm512_maskz_loadu_pd(in, step + k)));
    _mm512_mask_storeu_pd(out + k, in, centred);
    norm2 = _mm512_fmadd_pd(centred, centred, norm2);
    sum = _mm512_add_pd(sum, size);
    most = _mm512_max_pd(most, size);
  }
  return {_mm512_reduce_add_pd(norm2), _mm512_reduce_add_pd(sum), _mm512_reduce_max_pd(most)};
}

inline RoundedSums quantise(const double* centred, const double* step, const double* inverse_step,
                            double sigma, int64_t dim, int8_t* hi, int8_t* lo) {
  const __m512d unit = _mm512_set1_pd(sigma), inverse = _mm512_set1_pd(1.0 / sigma);
  __m512d norm2 = _mm512_setzero_pd(), error2 = norm2;
  __m256i total = _mm256_setzero_si256();
  for (int64_t k = 0; k < dim; k += 8) {
    const __mmask8 in = lanes_left(dim - k);
    const __m512d value = _mm512_maskz_loadu_pd(in, centred + k);
    const __m512d exact =
        _mm512_mul_pd(_mm512_mul_pd(value, _mm512_maskz_loadu_pd(in, step + k)), inverse);
    const __m256i v = _mm512_cvtpd_epi32(exact);
    const __m512d rounded = _mm512_mul_pd(_mm512_mul_pd(_mm512_cvtepi32_pd(v), unit),
                                          _mm512_maskz_loadu_pd(in, inverse_step + k));
    const __m512d residual = _mm512_sub_pd(value, rounded);
    norm2 = _mm512_fmadd_pd(rounded, rounded, norm2);
    error2 = _mm512_fmadd_pd(residual, residual, error2);
    total = _mm256_add_epi32(total, v);
    _mm256_mask_cvtepi32_storeu_epi8(lo + k, in, v);  // the low byte, signed
    if (hi) {
      const __m256i high = _mm256_srai_epi32(_mm256_add_epi32(v, _mm256_set1_epi32(128)), 8);
      _mm256_mask_cvtepi32_storeu_epi8(hi + k, in, high);
    }
  }
  return {_mm512_reduce_add_pd(norm2), _mm512_reduce_add_pd(error2),
          _mm512_reduce_add_epi32(_mm512_zextsi256_si512(total))};
}

}  // namespace
}  // namespace clustermim
