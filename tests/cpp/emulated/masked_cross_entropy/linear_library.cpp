// hopper_linear.cu on the CPU: a library for one kind of call, compiled with the same constants.
#include "masked_cross_entropy/run_linear.h"

using namespace clustermim::hopper;
using Kind = Linear<CMIM_TYPE, CMIM_CLASSES, CMIM_DEPTH, CMIM_CLUSTER, CMIM_INPUT, CMIM_WEIGHT>;
static_assert(Kind::kThreads == CMIM_THREADS && Kind::kBytes == CMIM_BYTES,
              "cuda_few.py asks for other blocks");

extern "C" __attribute__((visibility("default"))) void hopper_linear_rows(
    const LinearArguments* arguments, int blocks) {
  emulated::run_linear<Kind>(*arguments, blocks);
}
