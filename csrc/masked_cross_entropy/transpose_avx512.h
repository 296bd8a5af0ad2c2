// Blocks of 16-bit values from rows into the layouts of tiles. For units compiled for AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "core/transpose_avx512.h"
#include "masked_cross_entropy/row_vector.h"

namespace clustermim {
namespace {

// Of two vectors of 32 words: (a0 b0 a1 b1 ...), the first and the second half.
CMIM_INLINE __m512i interleave_first(__m512i a, __m512i b) {
  const __m512i index = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40,
                                         8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  return _mm512_permutex2var_epi16(a, index, b);
}
CMIM_INLINE __m512i interleave_second(__m512i a, __m512i b) {
  const __m512i index =
      _mm512_set_epi16(63, 31, 62, 30, 61, 29, 60, 28, 59, 27, 58, 26, 57, 25, 56, 24, 55, 23, 54,
                       22, 53, 21, 52, 20, 51, 19, 50, 18, 49, 17, 48, 16);
  return _mm512_permutex2var_epi16(a, index, b);
}

// Words [at, at + 32) of a row of `size`, zeros past its end.
CMIM_INLINE __m512i load_words(const uint16_t* row, int64_t at, int64_t size) {
  const int64_t left = size - at;
  if (left >= 32) return _mm512_loadu_si512(row + at);
  return left <= 0 ? _mm512_setzero_si512()
                   : _mm512_maskz_loadu_epi16((__mmask32)((1u << left) - 1), row + at);
}

}  // namespace
}  // namespace clustermim
