// The generic path where it can rely on SSE2.
#include "assign/narrow_integers_kernel.h"

#if defined(__x86_64__)
#include <emmintrin.h>

namespace clustermim {
namespace {

struct Vectors {
  static constexpr int kLanes = 4;
  static constexpr int kMostColumns = 5, kFewer = 1;
  static constexpr float kSquares = 256.0f;
  typedef float Float __attribute__((vector_size(16)));
  typedef int32_t Int __attribute__((vector_size(16)));
  typedef int32_t UnalignedInt __attribute__((vector_size(16), aligned(4)));

  static CMIM_INLINE __m128i in(Int v) { return (__m128i)v; }
  static CMIM_INLINE __m128 in(Float v) { return (__m128)v; }

  static CMIM_INLINE Float load(const float* p) { return (Float)_mm_loadu_ps(p); }
  static CMIM_INLINE Float load_some(const float* p, int64_t n) {
    Float v = {};
    for (int64_t i = 0; i < n; ++i) v[i] = p[i];
    return v;
  }
  static CMIM_INLINE Int round(Float v) { return (Int)_mm_cvtps_epi32(in(v)); }
  static CMIM_INLINE Float to_float(Int v) { return (Float)_mm_cvtepi32_ps(in(v)); }
  static CMIM_INLINE Int narrow(Int a, Int b) { return (Int)_mm_packs_epi32(in(a), in(b)); }
  static CMIM_INLINE Int subtract(Int a, Int b) { return (Int)_mm_sub_epi32(in(a), in(b)); }
  static CMIM_INLINE Float max(Float a, Float b) { return (Float)_mm_max_ps(in(a), in(b)); }
  static CMIM_INLINE Float min(Float a, Float b) { return (Float)_mm_min_ps(in(a), in(b)); }
  static CMIM_INLINE Float sqrt(Float v) { return (Float)_mm_sqrt_ps(in(v)); }
  static CMIM_INLINE uint32_t less(Float a, Float b) {
    return _mm_movemask_ps(_mm_cmplt_ps(in(a), in(b)));
  }
  static CMIM_INLINE uint32_t greater(Int a, Int b) {
    return _mm_movemask_ps(_mm_castsi128_ps(_mm_cmpgt_epi32(in(a), in(b))));
  }
  static CMIM_INLINE Int mark(Int score, Int keep, Int column) { return (score & keep) | column; }
  static CMIM_INLINE Int dot(Int sum, Int a, Int b) {
    return (Int)_mm_add_epi32(in(sum), _mm_madd_epi16(in(a), in(b)));
  }
  // The sum of two squares is at most 2^31, without a sign.
  static CMIM_INLINE Int add_squares(Int sum, Int x) {
    return (Int)_mm_add_epi32(in(sum), _mm_srli_epi32(_mm_madd_epi16(in(x), in(x)), 8));
  }

  static CMIM_INLINE void transpose(Int v[4]) {
    const __m128i a = _mm_unpacklo_epi32(in(v[0]), in(v[1]));
    const __m128i b = _mm_unpackhi_epi32(in(v[0]), in(v[1]));
    const __m128i c = _mm_unpacklo_epi32(in(v[2]), in(v[3]));
    const __m128i d = _mm_unpackhi_epi32(in(v[2]), in(v[3]));
    v[0] = (Int)_mm_unpacklo_epi64(a, c);
    v[1] = (Int)_mm_unpackhi_epi64(a, c);
    v[2] = (Int)_mm_unpacklo_epi64(b, d);
    v[3] = (Int)_mm_unpackhi_epi64(b, d);
  }
};

}  // namespace

extern const IntegerKernel kIntegersGeneric;
const IntegerKernel kIntegersGeneric = Integers<Vectors>::kernel();

}  // namespace clustermim
#endif
