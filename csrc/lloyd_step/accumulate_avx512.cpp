#define CMIM_VECTOR_BYTES 64
#define CMIM_TILE_ROWS 4
#include "lloyd_step/accumulate_kernel.h"

namespace clustermim {

extern const AccumulateKernels kAccumulateAvx512;
const AccumulateKernels kAccumulateAvx512 = kThisUnit;

}  // namespace clustermim
