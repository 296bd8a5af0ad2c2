#include "assign/filter_kernel.h"

namespace clustermim {
namespace {
CMIM_VECTORS(Vectors16, 16);
}  // namespace

// 32 registers of 16 lanes: 14 x 2 accumulators + 2 columns + 1 broadcast.
using Kernel = Filter<Vectors16, 14>;
extern const FilterKernel kFilterAvx512;
const FilterKernel kFilterAvx512 = {Kernel::kLanes, Kernel::kColumns, 14, &Kernel::top2,
                                    &Kernel::scores};

}  // namespace clustermim
