#include "assign/filter_kernel.h"

namespace clustermim {

// 16 registers of 4 lanes (SSE2, NEON): 4 x 2 accumulators leave room for operands without FMA.
using Kernel = Filter<4, 4>;
extern const FilterKernel kFilterGeneric;
const FilterKernel kFilterGeneric = {4, Kernel::kColumns, 4, &Kernel::top2, &Kernel::scores};

}  // namespace clustermim
