// hopper_filter.cu on the CPU: a library for one kind of call, compiled with the same constants.
#include "nearest_centroid/run_filter.h"

using namespace clustermim::hopper;
using Kind = Filter<CMIM_SOURCE, CMIM_DEPTH, CMIM_CLUSTER, CMIM_EUCLIDEAN, CMIM_ONE_TILE>;
static_assert(Kind::kThreads == CMIM_THREADS && Kind::kBytes == CMIM_BYTES,
              "cuda_filter.py asks for other blocks");

// packed: what the device has a tensor map of.
extern "C" __attribute__((visibility("default"))) void filter_rows(const FilterArguments* arguments,
                                                                   const void* packed, int blocks) {
  emulated::run_filter<Kind>(*arguments, static_cast<const uint16*>(packed), blocks);
}
