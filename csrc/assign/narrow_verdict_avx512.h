// From the largest scores of 16 rows to their entries, or to the lists of open rows. For units
// compiled for AVX-512.
#pragma once

#include <immintrin.h>

#include "assign/narrow.h"
#include "assign/narrow_pack_avx512.h"

namespace clustermim {
namespace {

constexpr float kMore = 1.0f + 0x1p-18f;
constexpr float kMaxNorm2 = 0x1p120f;  // keeps float32 scores far from overflow

// The three largest scores of each lane so far, each with its column in the last bits.
struct Best {
  __m512 first, second, third;

  CMIM_INLINE void add(__m512 score) {
    const __m512 low = _mm512_min_ps(first, score);
    first = _mm512_max_ps(first, score);
    const __m512 lower = _mm512_min_ps(second, low);
    second = _mm512_max_ps(second, low);
    third = _mm512_max_ps(third, lower);
  }
};

// certificate.cpp's row_bounds and thresholds for 16 rows, one segment, euclidean.
struct Certificate {
  __m512 norm, residual, scores, distance, best;
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

CMIM_INLINE Certificate certify(const NarrowBook& book, Sums sums, __m512 best, float marked) {
  // Two chains of at most 64 squares each, whose roundings kMore covers as well.
  const __m512 norm = times(kMore, _mm512_sqrt_ps(sums.norm2));
  const __m512 residual = times(kMore, _mm512_sqrt_ps(sums.error2));
  const SegmentBounds& s = book.bounds;
  const __m512 scores =
      fma(2.02f * book.error.dot * s.norm, norm, splat(2.02f * book.error.bias * s.bias));
  // The winner's score without its mark is at least this.
  const __m512 b = fma(-marked, _mm512_abs_ps(best), best);
  const __m512 distance2 = fma(2.0f, scores, fma(-2.0f, b, _mm512_mul_ps(norm, norm)));
  const __m512 distance = _mm512_sqrt_ps(_mm512_max_ps(distance2, _mm512_setzero_ps()));
  return {norm, residual, scores, distance, b};
}

// The threshold for centroids with these two residuals together.
CMIM_INLINE __m512 threshold(const Certificate& c, __m512 residuals, float counts, float marked) {
  const __m512 slack = fma(2.0f, c.residual, residuals);
  const __m512 margin = _mm512_fmadd_ps(slack, fma(0.5f, slack, c.distance), c.scores);
  const __m512 limit = fma(-counts, margin, c.best);
  // A score that lies below with its mark lies below the threshold without it.
  return fma(-marked, _mm512_abs_ps(limit), limit);
}

struct Marks {
  __m512i clear;   // the bits of a score that its column takes
  float relative;  // what they change of it, at most
};

inline Marks marks_for(int64_t columns) {
  int bits = 0;
  while ((int64_t{1} << bits) < columns) ++bits;
  return {_mm512_set1_epi32((1 << bits) - 1),
          static_cast<float>(1 << bits) * 0x1p-23f * (1.0f + 0x1p-8f)};
}

// Writes the entries of 16 rows, and lists those left open.
CMIM_INLINE void finish(const NarrowBook& book, Sums sums, const Best& best, const Marks& marks,
                        int64_t first_row, int64_t count, int32_t* entries, NarrowOpen* open) {
  const Certificate c = certify(book, sums, best.first, marks.relative);
  const __m512i first = _mm512_and_si512(_mm512_castps_si512(best.first), marks.clear);
  const __m512i second = _mm512_and_si512(_mm512_castps_si512(best.second), marks.clear);
  const __mmask16 in = count >= kGroup ? 0xffff : (1u << count) - 1;
  const __mmask16 usable = _mm512_cmp_ps_mask(sums.norm2, splat(kMaxNorm2), _CMP_LT_OQ) &
                           _mm512_cmp_ps_mask(sums.error2, splat(kMaxNorm2), _CMP_LT_OQ) & in;
  _mm512_mask_storeu_epi32(entries + first_row, in,
                           _mm512_mask_i32gather_epi32(first, usable, first, book.entry_of, 4));
  const __m512 all = threshold(c, splat(2.0f * book.bounds.residual), book.margin, marks.relative);
  const __mmask16 open_lanes = in & ~(usable & _mm512_cmp_ps_mask(best.second, all, _CMP_LT_OQ));
  if (!open_lanes) return;
  const __m512i row =
      _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first_row)),
                       _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  // Two columns above the threshold: their own residuals may still tell them apart.
  const __mmask16 two = open_lanes & usable & _mm512_cmp_ps_mask(best.third, all, _CMP_LT_OQ);
  const __m512 own =
      threshold(c,
                _mm512_add_ps(_mm512_mask_i32gather_ps(c.norm, two, first, book.residual, 4),
                              _mm512_mask_i32gather_ps(c.norm, two, second, book.residual, 4)),
                book.margin, marks.relative);
  const __mmask16 pairs = two & ~_mm512_cmp_ps_mask(best.second, own, _CMP_LT_OQ);
  _mm512_storeu_si512(open->pair_row + open->pairs, _mm512_maskz_compress_epi32(pairs, row));
  _mm512_storeu_si512(open->first + open->pairs, _mm512_maskz_compress_epi32(pairs, first));
  _mm512_storeu_si512(open->second + open->pairs, _mm512_maskz_compress_epi32(pairs, second));
  open->pairs += __builtin_popcount(pairs);
  const __mmask16 more = open_lanes & ~two;
  if (!more) return;
  alignas(64) float limits[kGroup], norm[kGroup], residual[kGroup];
  _mm512_store_ps(limits, _mm512_mask_mov_ps(splat(__builtin_nanf("")), usable, all));
  _mm512_store_ps(norm, c.norm);
  _mm512_store_ps(residual, c.residual);
  for (uint32_t bits = more; bits; bits &= bits - 1) {
    const int r = __builtin_ctz(bits);
    open->row[open->rows] = static_cast<int32_t>(first_row + r);
    open->threshold[open->rows] = limits[r];
    open->bounds[open->rows] = {norm[r], residual[r]};
    ++open->rows;
  }
}

}  // namespace
}  // namespace clustermim
