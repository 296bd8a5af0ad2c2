#include "assign/filter_kernel.h"

namespace clustermim {

// 32 registers of 16 lanes: 14 x 2 accumulators + 2 columns + 1 broadcast.
using Kernel = Filter<16, 14>;
extern const FilterKernel kFilterAvx512;
const FilterKernel kFilterAvx512 = {16, Kernel::kColumns, 14, &Kernel::top2, &Kernel::scores};

}  // namespace clustermim
