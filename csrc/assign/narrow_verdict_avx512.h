// From the largest scores of 16 rows to their entries, or to the lists of open rows. For units
// compiled for AVX-512.
//
// Scores come as tiles of 16 columns. Kept are the largest score of each tile and the largest of
// each place in all tiles: a column above a threshold is one of a tile above and of a place above
// it, and one tile and one place are one column. That takes two maxima for each score; the three
// largest scores with their columns take six operations.
#pragma once

#include <immintrin.h>

#include "assign/narrow.h"
#include "assign/narrow_pack_avx512.h"

namespace clustermim {
namespace {

constexpr float kMore = 1.0f + 0x1p-18f;
constexpr float kMaxNorm2 = 0x1p120f;  // keeps float32 scores far from overflow
constexpr int64_t kMostTiles = 64;
constexpr int kPlaces = 16;

struct alignas(64) Grid {
  float place[kPlaces][kGroup];
  float tile[kMostTiles][kGroup];
};

CMIM_INLINE __m512 splat(float v) {
  return _mm512_set1_ps(v);
}
CMIM_INLINE __m512 times(float a, __m512 b) {
  return _mm512_mul_ps(_mm512_set1_ps(a), b);
}
CMIM_INLINE __m512 fma(float a, __m512 b, __m512 c) {
  return _mm512_fmadd_ps(_mm512_set1_ps(a), b, c);
}
// At least the square root: the estimate's relative error is at most 2^-14.
CMIM_INLINE __m512 root_above(__m512 v) {
  const __m512 positive = _mm512_max_ps(v, splat(0x1p-120f));
  return times(1.0f + 0x1p-13f, _mm512_mul_ps(positive, _mm512_rsqrt14_ps(positive)));
}

// certificate.cpp's row_bounds and thresholds for 16 rows, one segment, euclidean, as a line above
// the parabola: the threshold of a column is `limit` - `slope` * its residual.
struct Certificate {
  __m512 norm, residual, limit, slope;
};

// `own`: the residual of the column with the score `best`, or more.
CMIM_INLINE Certificate certify(const NarrowBook& book, Sums sums, __m512 best, __m512 own) {
  // Two chains of at most 64 squares each, whose roundings these factors cover as well.
  const __m512 norm = root_above(sums.norm2), residual = root_above(sums.error2);
  const __m512 square = times(kMore * kMore, sums.norm2);
  const SegmentBounds& s = book.bounds;
  const __m512 scores =
      fma(2.02f * book.error.dot * s.norm, norm, splat(2.02f * book.error.bias * s.bias));
  const __m512 size = _mm512_abs_ps(best), twice = times(2.0f, best);
  const __m512 distance2 =
      fma(0x1p-21f, fma(2.0f, size, square), fma(2.0f, scores, _mm512_sub_ps(square, twice)));
  const __m512 distance = root_above(distance2);
  // S (distance + S / 2) for S = slack + r, r in [0, most]: below the chord.
  const __m512 slack = fma(2.0f, residual, own);
  const __m512 margin = _mm512_fmadd_ps(slack, fma(0.5f, slack, distance), scores);
  const __m512 slope = _mm512_add_ps(_mm512_add_ps(slack, distance), splat(0.5f * s.residual));
  return {norm, residual, fma(-book.margin, margin, fma(-0x1p-22f, size, best)),
          times(book.margin, slope)};
}

CMIM_INLINE __mmask16 is_zero(__m512i v) {
  return _mm512_testn_epi32_mask(v, v);
}

// Of each lane a set of numbers below 64.
struct Set {
  __m512i low, high;

  CMIM_INLINE __mmask16 empty() const { return is_zero(_mm512_or_si512(low, high)); }

  // Takes out the smallest number; of an empty set something negative.
  CMIM_INLINE __m512i take() {
    const __mmask16 in_high = is_zero(low);
    const __m512i word = _mm512_mask_mov_epi32(low, in_high, high);
    const __m512i bit = _mm512_and_si512(word, _mm512_sub_epi32(_mm512_setzero_si512(), word));
    low = _mm512_andnot_si512(bit, low);
    high = _mm512_mask_andnot_epi32(high, in_high, bit, high);
    // A power of two's exponent.
    const __m512i bits = _mm512_castps_si512(_mm512_cvtepu32_ps(bit));
    const __m512i at = _mm512_sub_epi32(_mm512_srli_epi32(bits, 23), _mm512_set1_epi32(127));
    return _mm512_mask_add_epi32(at, in_high, at, _mm512_set1_epi32(32));
  }
};

// Of `count` <= 32 tiles those that reach their threshold; `residual` becomes that of the last one.
CMIM_INLINE __m512i tiles_above(const Certificate& c, const float (*maxima)[kGroup],
                                const float* residuals, int64_t count, __m512& residual) {
  __m512i set = _mm512_setzero_si512(), bit = _mm512_set1_epi32(1);
#pragma GCC unroll 4
  for (int64_t t = 0; t < count; ++t) {
    const __m512 r = splat(residuals[t]);
    const __mmask16 in = _mm512_cmp_ps_mask(_mm512_load_ps(maxima[t]),
                                            _mm512_fnmadd_ps(c.slope, r, c.limit), _CMP_GE_OQ);
    set = _mm512_mask_or_epi32(set, in, set, bit);
    residual = _mm512_mask_mov_ps(residual, in, r);
    bit = _mm512_add_epi32(bit, bit);
  }
  return set;
}

// Lists rows for the second pass.
CMIM_INLINE void list_rows(const NarrowBook& book, const Certificate& c, __mmask16 usable,
                           __mmask16 rows, int64_t first_row, NarrowOpen* open) {
  const __m512 lowest = _mm512_fnmadd_ps(c.slope, splat(book.bounds.residual), c.limit);
  alignas(64) float limits[kGroup], norm[kGroup], residual[kGroup];
  _mm512_store_ps(limits, _mm512_mask_mov_ps(splat(__builtin_nanf("")), usable, lowest));
  _mm512_store_ps(norm, c.norm);
  _mm512_store_ps(residual, c.residual);
  for (uint32_t bits = rows; bits; bits &= bits - 1) {
    const int r = __builtin_ctz(bits);
    open->row[open->rows] = static_cast<int32_t>(first_row + r);
    open->threshold[open->rows] = limits[r];
    open->bounds[open->rows] = {norm[r], residual[r]};
    ++open->rows;
  }
}

// Writes the entries of 16 rows, and lists those left open.
CMIM_INLINE void finish(const NarrowBook& book, Sums sums, const Grid& grid, int64_t first_row,
                        int64_t count, int32_t* entries, NarrowOpen* open) {
  const int64_t tiles = book.tiles, low_tiles = tiles < 32 ? tiles : 32;
  __m512 best = _mm512_load_ps(grid.tile[0]), own = splat(book.tile_residual[0]);
  for (int64_t t = 1; t < tiles; ++t) {
    const __m512 score = _mm512_load_ps(grid.tile[t]);
    const __mmask16 better = _mm512_cmp_ps_mask(score, best, _CMP_GT_OQ);
    best = _mm512_max_ps(best, score);
    own = _mm512_mask_mov_ps(own, better, splat(book.tile_residual[t]));
  }
  const Certificate c = certify(book, sums, best, own);
  const __mmask16 in = count >= kGroup ? 0xffff : (1u << count) - 1;
  __mmask16 usable = _mm512_cmp_ps_mask(sums.norm2, splat(kMaxNorm2), _CMP_LT_OQ) &
                     _mm512_cmp_ps_mask(sums.error2, splat(kMaxNorm2), _CMP_LT_OQ) & in;
  __m512 residual = _mm512_setzero_ps();
  Set in_tiles = {tiles_above(c, grid.tile, book.tile_residual, low_tiles, residual),
                  _mm512_setzero_si512()};
  if (tiles > 32) {
    in_tiles.high = tiles_above(c, grid.tile + 32, book.tile_residual + 32, tiles - 32, residual);
  }
  // Columns that matter are in those tiles, and tiles are in the order of their residuals.
  const __m512 limit = _mm512_fnmadd_ps(c.slope, residual, c.limit);
  Set in_places = {_mm512_setzero_si512(), _mm512_setzero_si512()};
#pragma GCC unroll 16
  for (int p = 0; p < kPlaces; ++p) {
    const __mmask16 above = _mm512_cmp_ps_mask(_mm512_load_ps(grid.place[p]), limit, _CMP_GE_OQ);
    in_places.low =
        _mm512_mask_or_epi32(in_places.low, above, in_places.low, _mm512_set1_epi32(1 << p));
  }
  const __m512i low = in_tiles.low, high = in_tiles.high, places = in_places.low;
  usable &= ~in_tiles.empty() & ~in_places.empty();
  const __m512i column = _mm512_add_epi32(_mm512_slli_epi32(in_tiles.take(), 4), in_places.take());
  _mm512_mask_storeu_epi32(entries + first_row, in,
                           _mm512_mask_i32gather_epi32(column, usable, column, book.entry_of, 4));
  const __mmask16 unsettled = in & ~(usable & in_tiles.empty() & in_places.empty());
  // Two tiles or places at most: at most four columns.
  in_tiles.take();
  in_places.take();
  const __mmask16 few = unsettled & usable & in_tiles.empty() & in_places.empty();
  const __m512i row =
      _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first_row)),
                       _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  // Always, whether there are any: that cannot be predicted.
  _mm512_storeu_si512(open->few_row + open->few, _mm512_maskz_compress_epi32(few, row));
  _mm512_storeu_si512(open->few_tiles[0] + open->few, _mm512_maskz_compress_epi32(few, low));
  _mm512_storeu_si512(open->few_tiles[1] + open->few, _mm512_maskz_compress_epi32(few, high));
  _mm512_storeu_si512(open->few_places + open->few, _mm512_maskz_compress_epi32(few, places));
  open->few += __builtin_popcount(few);
  if (const __mmask16 many = unsettled & ~few) {
    list_rows(book, c, usable, many, first_row, open);
  }
}

}  // namespace
}  // namespace clustermim
