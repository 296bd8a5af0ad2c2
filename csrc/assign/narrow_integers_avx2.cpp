#include <immintrin.h>

#include "assign/narrow_integers_kernel.h"

namespace clustermim {
namespace {

struct Vectors {
  static constexpr int kLanes = 8;
  // 16 registers: 2 x 5 sums, 2 rows, a column, 2 products.
  static constexpr int kMostColumns = 5, kFewer = 1;
  static constexpr float kSquares = 256.0f;
  typedef float Float __attribute__((vector_size(32)));
  typedef int32_t Int __attribute__((vector_size(32)));
  typedef int32_t UnalignedInt __attribute__((vector_size(32), aligned(4)));

  static CMIM_INLINE __m256i in(Int v) { return (__m256i)v; }
  static CMIM_INLINE __m256 in(Float v) { return (__m256)v; }

  static CMIM_INLINE Float load(const float* p) { return (Float)_mm256_loadu_ps(p); }
  static CMIM_INLINE Float load_some(const float* p, int64_t n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i which = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane);
    return (Float)_mm256_maskload_ps(p, which);
  }
  static CMIM_INLINE Int round(Float v) { return (Int)_mm256_cvtps_epi32(in(v)); }
  static CMIM_INLINE Float to_float(Int v) { return (Float)_mm256_cvtepi32_ps(in(v)); }
  static CMIM_INLINE Int narrow(Int a, Int b) { return (Int)_mm256_packs_epi32(in(a), in(b)); }
  static CMIM_INLINE Int subtract(Int a, Int b) { return (Int)_mm256_sub_epi32(in(a), in(b)); }
  static CMIM_INLINE Float max(Float a, Float b) { return (Float)_mm256_max_ps(in(a), in(b)); }
  static CMIM_INLINE Float min(Float a, Float b) { return (Float)_mm256_min_ps(in(a), in(b)); }
  static CMIM_INLINE Float sqrt(Float v) { return (Float)_mm256_sqrt_ps(in(v)); }
  static CMIM_INLINE uint32_t less(Float a, Float b) {
    return _mm256_movemask_ps(_mm256_cmp_ps(in(a), in(b), _CMP_LT_OQ));
  }
  static CMIM_INLINE uint32_t greater(Int a, Int b) {
    return _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(in(a), in(b))));
  }
  static CMIM_INLINE Int mark(Int score, Int keep, Int column) { return (score & keep) | column; }
  static CMIM_INLINE Int dot(Int sum, Int a, Int b) {
    return (Int)_mm256_add_epi32(in(sum), _mm256_madd_epi16(in(a), in(b)));
  }
  // The sum of two squares is at most 2^31, without a sign.
  static CMIM_INLINE Int add_squares(Int sum, Int x) {
    return (Int)_mm256_add_epi32(in(sum), _mm256_srli_epi32(_mm256_madd_epi16(in(x), in(x)), 8));
  }

  static CMIM_INLINE void transpose(Int v[8]) {
    __m256i t[8], u[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_epi32(in(v[i]), in(v[i + 1]));
      t[i + 1] = _mm256_unpackhi_epi32(in(v[i]), in(v[i + 1]));
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
      u[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
      u[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
      u[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
      u[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      v[i] = (Int)_mm256_permute2x128_si256(u[i], u[i + 4], 0x20);
      v[i + 4] = (Int)_mm256_permute2x128_si256(u[i], u[i + 4], 0x31);
    }
  }
};

}  // namespace

extern const IntegerKernel kIntegersAvx2;
const IntegerKernel kIntegersAvx2 = Integers<Vectors>::kernel();

}  // namespace clustermim
