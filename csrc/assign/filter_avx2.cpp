#include "assign/filter_kernel.h"

namespace clustermim {
namespace {
CMIM_VECTORS(Vectors8, 8);
}  // namespace

// 16 registers of 8 lanes: 6 x 2 accumulators + 2 columns + 1 broadcast.
using Kernel = Filter<Vectors8, 6>;
extern const FilterKernel kFilterAvx2;
const FilterKernel kFilterAvx2 = {Kernel::kLanes, Kernel::kColumns, 6, &Kernel::top2,
                                  &Kernel::scores};

}  // namespace clustermim
