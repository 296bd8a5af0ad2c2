// narrow_integers_kernel.h's vectors for units compiled for AVX-512.
#pragma once

#include <immintrin.h>

#include "assign/narrow_integers_kernel.h"
#include "core/transpose_avx512.h"

namespace clustermim {
namespace {

struct Vectors512 {
  static constexpr int kLanes = 16;
  // 32 registers: 2 x 12 sums, 2 rows, a column, 4 largest scores.
  static constexpr int kMostColumns = 12, kFewer = 2;
  typedef float Float __attribute__((vector_size(64)));
  typedef int32_t Int __attribute__((vector_size(64)));
  typedef int32_t UnalignedInt __attribute__((vector_size(64), aligned(4)));

  static CMIM_INLINE __m512i in(Int v) { return (__m512i)v; }
  static CMIM_INLINE __m512 in(Float v) { return (__m512)v; }

  static CMIM_INLINE Float load(const float* p) { return (Float)_mm512_loadu_ps(p); }
  static CMIM_INLINE Float load_some(const float* p, int64_t n) {
    return (Float)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
  }
  static CMIM_INLINE Int round(Float v) { return (Int)_mm512_cvtps_epi32(in(v)); }
  static CMIM_INLINE Float to_float(Int v) { return (Float)_mm512_cvtepi32_ps(in(v)); }
  static CMIM_INLINE Int narrow(Int a, Int b) { return (Int)_mm512_packs_epi32(in(a), in(b)); }
  static CMIM_INLINE Int subtract(Int a, Int b) { return (Int)_mm512_sub_epi32(in(a), in(b)); }
  static CMIM_INLINE Float max(Float a, Float b) { return (Float)_mm512_max_ps(in(a), in(b)); }
  static CMIM_INLINE Float min(Float a, Float b) { return (Float)_mm512_min_ps(in(a), in(b)); }
  static CMIM_INLINE Float sqrt(Float v) { return (Float)_mm512_sqrt_ps(in(v)); }
  static CMIM_INLINE uint32_t less(Float a, Float b) {
    return _mm512_cmp_ps_mask(in(a), in(b), _CMP_LT_OQ);
  }
  static CMIM_INLINE uint32_t greater(Int a, Int b) {
    return _mm512_cmpgt_epi32_mask(in(a), in(b));
  }
  static CMIM_INLINE Int mark(Int score, Int keep, Int column) {
    return (Int)_mm512_ternarylogic_epi32(in(score), in(keep), in(column), 0xea);  // a & b | c
  }

  static CMIM_INLINE void transpose(Int v[16]) {
    __m512i bits[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) bits[i] = in(v[i]);
    transpose_16x16(bits);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) v[i] = (Int)bits[i];
  }
};

}  // namespace
}  // namespace clustermim
