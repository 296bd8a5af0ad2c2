#include "assign/filter_kernel.h"
#include "assign/scan_avx512.h"

namespace clustermim {
namespace {
CMIM_VECTORS(Vectors16, 16);

// 32 registers of 16 lanes: 14 x 2 accumulators + 2 columns + 1 broadcast.
constexpr FilterKernel kernel() {
  FilterKernel k = Filter<Vectors16, 14, 28>::kernel();
  k.scan.row_max = row_max;
  k.scan.select = select;
  k.scan.squared_distance = squared_distance;
  return k;
}
}  // namespace

extern const FilterKernel kFilterAvx512;
const FilterKernel kFilterAvx512 = kernel();

}  // namespace clustermim
