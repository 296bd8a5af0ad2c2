// Tokens and weight of the linear loss from rows of 16-bit values into the layouts of tiles. For
// units compiled for AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "core/inline.h"
#include "core/transpose_avx512.h"
#include "masked_cross_entropy/linear_kernel.h"

namespace clustermim {
namespace {

constexpr int64_t kTileBytes = 1024;

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

// Rows 2p and 2p + 1 of 32, word by word: two tiles, of the words [0, 16) and [16, 32).
CMIM_INLINE void store_pairs(const __m512i v[2][16], char* pairs) {
  for (int p = 0; p < 16; ++p) {
    const __m512i a = v[p / 8][p % 8 * 2], b = v[p / 8][p % 8 * 2 + 1];
    _mm512_store_si512(pairs + p * 64, interleave_first(a, b));
    _mm512_store_si512(pairs + kTileBytes + p * 64, interleave_second(a, b));
  }
}

CMIM_INLINE void store_transposed(__m512i v[2][16], char* out) {
  for (int half = 0; half < 2; ++half) {
    transpose_16x16(v[half]);
    for (int i = 0; i < 16; ++i) {
      _mm512_store_si512(out + half * kTileBytes + i * 64, v[half][i]);
    }
  }
}

void pack_tokens(const uint16_t* const* rows, int64_t dim, char* columns, char* pairs) {
  for (int64_t d = 0; d < dim; d += kStepValues, columns += 2 * kTileBytes) {
    const int64_t left = dim - d;
    const __mmask32 in = left >= 32 ? ~0u : (1u << left) - 1;
    __m512i v[2][16];
#pragma GCC unroll 32
    for (int i = 0; i < 32; ++i) {
      const uint16_t* row = rows[i] ? rows[i] + d : nullptr;
      v[i / 16][i % 16] = _mm512_maskz_loadu_epi16(row ? in : 0, row);
    }
    if (pairs) {
      store_pairs(v, pairs);
      pairs += 2 * kTileBytes;
    }
    store_transposed(v, columns);
  }
}

// [steps of 32 values][panels][two tiles of 16 pairs of classes]
void pack_weight(const uint16_t* weight, int64_t stride, const LinearShape& shape, int64_t panel,
                 char* pairs) {
  for (int64_t s = 0; s < shape.steps(); ++s) {
    __m512i v[2][16];
    for (int64_t c = 0; c < kPanelClasses; ++c) {
      const int64_t k = panel * kPanelClasses + c;
      v[c / 16][c % 16] = k < shape.classes
                              ? load_words(weight + k * stride, s * kStepValues, shape.dim)
                              : _mm512_setzero_si512();
    }
    store_pairs(v, pairs + (s * shape.panels() + panel) * 2 * kTileBytes);
  }
}

}  // namespace
}  // namespace clustermim
