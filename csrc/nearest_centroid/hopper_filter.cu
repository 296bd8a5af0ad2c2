// Compiled at first use for one kind of call: CMIM_* are given
// (ops/nearest_centroid/cuda_filter.py).
#include "nearest_centroid/hopper_filter.h"

using namespace clustermim::hopper;
using Kind = Filter<CMIM_SOURCE, CMIM_DEPTH, CMIM_CLUSTER, CMIM_EUCLIDEAN, CMIM_ONE_TILE>;
static_assert(Kind::kThreads == CMIM_THREADS && Kind::kBytes == CMIM_BYTES,
              "cuda_filter.py asks for other blocks");

extern "C" __global__ void __launch_bounds__(Kind::kThreads, 1)
    filter_rows(const __grid_constant__ FilterArguments arguments,
                const __grid_constant__ TensorMap centroids) {
  extern __shared__ __align__(1024) unsigned char memory[];
  filter<Kind>(arguments, &centroids, shared_address(memory));
}
