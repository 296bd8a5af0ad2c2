#define CMIM_VECTOR_BYTES 32
#define CMIM_TILE_ROWS 2
#include "lloyd_step/accumulate_kernel.h"

namespace clustermim {

extern const AccumulateKernels kAccumulateAvx2;
const AccumulateKernels kAccumulateAvx2 = kThisUnit;

}  // namespace clustermim
