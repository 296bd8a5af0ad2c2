#define CMIM_VECTOR_BYTES 16
#define CMIM_TILE_ROWS 2
#include "lloyd_step/accumulate_kernel.h"

namespace clustermim {

extern const AccumulateKernels kAccumulateGeneric;
const AccumulateKernels kAccumulateGeneric = kThisUnit;

}  // namespace clustermim
