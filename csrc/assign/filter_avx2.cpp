#include "assign/filter_kernel.h"

namespace clustermim {
namespace {
CMIM_VECTORS(Vectors8, 8);
}  // namespace

// 16 registers of 8 lanes: 6 x 2 accumulators + 2 columns + 1 broadcast.
extern const FilterKernel kFilterAvx2;
const FilterKernel kFilterAvx2 = Filter<Vectors8, 6, 30>::kernel();

}  // namespace clustermim
