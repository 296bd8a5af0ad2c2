#include "assign/filter_kernel.h"

namespace clustermim {
namespace {
CMIM_VECTORS(Vectors4, 4);
}  // namespace

// 16 registers of 4 lanes (SSE2, NEON): 6 x 2 accumulators + 2 columns + 1 broadcast.
extern const FilterKernel kFilterGeneric;
const FilterKernel kFilterGeneric = Filter<Vectors4, 6, 30>::kernel();

}  // namespace clustermim
