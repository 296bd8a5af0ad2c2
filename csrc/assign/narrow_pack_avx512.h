// Rows to vectors of one value of 16 rows, rounded to bfloat16. For units compiled for AVX-512.
#pragma once

#include <immintrin.h>

#include "assign/narrow.h"
#include "core/inline.h"
#include "core/transpose_avx512.h"

namespace clustermim {
namespace {

constexpr int64_t kGroup = 16;  // rows in the lanes of a vector

struct Sums {
  __m512 norm2, error2;
};

CMIM_INLINE void transpose(__m512 v[16]) {
  __m512i bits[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) bits[i] = _mm512_castps_si512(v[i]);
  transpose_16x16(bits);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) v[i] = _mm512_castsi512_ps(bits[i]);
}

// One value of 16 rows to bfloat16, as the upper halves; ties away from zero.
CMIM_INLINE __m512i round_value(__m512 value, __m512 scale, const float* shift, Sums& sums) {
  // A power of two times x - centre, rounded once.
  const __m512 scaled = _mm512_fmadd_ps(value, scale, _mm512_set1_ps(*shift));
  const __m512i rounded =
      _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(scaled), _mm512_set1_epi32(0x8000)),
                       _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
  const __m512 back = _mm512_castsi512_ps(rounded), lost = _mm512_sub_ps(scaled, back);
  sums.norm2 = _mm512_fmadd_ps(back, back, sums.norm2);
  sums.error2 = _mm512_fmadd_ps(lost, lost, sums.error2);
  return rounded;
}

CMIM_INLINE __m512i pair(__m512i even, __m512i odd) {
  return _mm512_or_si512(_mm512_srli_epi32(even, 16), odd);
}

// Memory has to be read all the time, which is in small pieces and in order between all that is
// computed: what follows the rows is asked for, `lines` cache lines at a time.
struct Ahead {
  const char* next;
  int64_t lines;

  CMIM_INLINE void ask() {
    for (int64_t i = 0; i < lines; ++i) _mm_prefetch(next + i * 64, _MM_HINT_T1);
    next += lines * 64;
  }
};

// 16 rows of `dim` values into one group of operands.
__attribute__((noinline)) inline Sums pack_group(const float* const row[kGroup], int64_t dim,
                                                 const float* shift, float scale, uint32_t* pairs,
                                                 Ahead* ahead) {
  const __m512 factor = _mm512_set1_ps(scale);
  Sums sums[2] = {};
  __m512 v[16];
  int64_t d = 0;
  for (; d + 16 <= dim; d += 16) {
    ahead->ask();
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) {
      v[r] = _mm512_loadu_ps(row[r] + d);
    }
    transpose(v);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      const __m512i even = round_value(v[i], factor, shift + d + i, sums[0]);
      const __m512i odd = round_value(v[i + 1], factor, shift + d + i + 1, sums[1]);
      _mm512_store_si512(pairs + (d + i) / 2 * kGroup, pair(even, odd));
    }
  }
  if (d < dim) {
    const __mmask16 in = (1u << (dim - d)) - 1;
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) v[r] = _mm512_maskz_loadu_ps(in, row[r] + d);
    transpose(v);
    alignas(64) float columns[16][16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) _mm512_store_ps(columns[i], v[i]);
    for (int64_t i = 0; d + i < dim; i += 2) {
      const __m512i even = round_value(_mm512_load_ps(columns[i]), factor, shift + d + i, sums[0]);
      const __m512i odd = d + i + 1 < dim ? round_value(_mm512_load_ps(columns[i + 1]), factor,
                                                        shift + d + i + 1, sums[1])
                                          : _mm512_set1_epi32(0x3f800000);  // one, for the bias
      _mm512_store_si512(pairs + (d + i) / 2 * kGroup, pair(even, odd));
    }
  }
  return {_mm512_add_ps(sums[0].norm2, sums[1].norm2),
          _mm512_add_ps(sums[0].error2, sums[1].error2)};
}

}  // namespace
}  // namespace clustermim
