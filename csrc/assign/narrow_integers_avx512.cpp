#include "assign/narrow_integers_avx512.h"

namespace clustermim {
namespace {

struct Vectors : Vectors512 {
  static constexpr float kSquares = 256.0f;
  static CMIM_INLINE Int dot(Int sum, Int a, Int b) {
    return (Int)_mm512_add_epi32(in(sum), _mm512_madd_epi16(in(a), in(b)));
  }
  // The sum of two squares is at most 2^31, without a sign.
  static CMIM_INLINE Int add_squares(Int sum, Int x) {
    return (Int)_mm512_add_epi32(in(sum), _mm512_srli_epi32(_mm512_madd_epi16(in(x), in(x)), 8));
  }
};

}  // namespace

extern const IntegerKernel kIntegersAvx512;
const IntegerKernel kIntegersAvx512 = Integers<Vectors>::kernel();

}  // namespace clustermim
