// Compiled at first use for one kind of call: CMIM_* are given
// (ops/masked_linear_cross_entropy/cuda_few.py).
#include "masked_cross_entropy/hopper_linear.h"

using namespace clustermim::hopper;
using Kind = Linear<CMIM_TYPE, CMIM_CLASSES, CMIM_DEPTH, CMIM_CLUSTER, CMIM_INPUT, CMIM_WEIGHT>;
static_assert(Kind::kThreads == CMIM_THREADS && Kind::kBytes == CMIM_BYTES,
              "cuda_few.py asks for other blocks");

extern "C" __global__ void __launch_bounds__(Kind::kThreads, 1)
    hopper_linear_rows(const __grid_constant__ LinearArguments arguments) {
  extern __shared__ __align__(1024) unsigned char memory[];
  linear_rows<Kind>(arguments, shared_address(memory));
}
