#include "assign/narrow_integers_avx512.h"

namespace clustermim {
namespace {

struct Vectors : Vectors512 {
  static constexpr float kSquares = 1.0f;
  static CMIM_INLINE Int dot(Int sum, Int a, Int b) {
    return (Int)_mm512_dpwssd_epi32(in(sum), in(a), in(b));
  }
  static CMIM_INLINE Int add_squares(Int sum, Int x) {  // stops at 2^31 - 1
    return (Int)_mm512_dpwssds_epi32(in(sum), in(x), in(x));
  }
};

}  // namespace

extern const IntegerKernel kIntegersVnni;
const IntegerKernel kIntegersVnni = Integers<Vectors>::kernel();

}  // namespace clustermim
