// hopper_filter.cu for the CPU: a library for one kind of call, with the same constants given.
#include "nearest_centroid/run_filter.h"

using namespace clustermim::hopper;
using Kind = Filter<CMIM_SOURCE, CMIM_DEPTH, CMIM_CLUSTER, CMIM_EUCLIDEAN, CMIM_ONE_TILE>;

// packed: what the device's tensor map is of.
extern "C" void filter_rows(const FilterArguments* arguments, const void* packed, int blocks) {
  emulated::run_filter<Kind>(*arguments, static_cast<const uint16*>(packed), blocks);
}
