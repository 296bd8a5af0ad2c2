// Compiled at first use, for one kind of call: CMIM_SOURCE, CMIM_DEPTH, CMIM_CLUSTER,
// CMIM_EUCLIDEAN and CMIM_ONE_TILE are given (ops/nearest_centroid/cuda_filter.py).
#include "nearest_centroid/hopper_filter.h"

using namespace clustermim::hopper;
using Kind = Filter<CMIM_SOURCE, CMIM_DEPTH, CMIM_CLUSTER, CMIM_EUCLIDEAN, CMIM_ONE_TILE>;

extern "C" __global__ void __launch_bounds__(Kind::kThreads, 1)
    filter_rows(const __grid_constant__ FilterArguments arguments,
                const __grid_constant__ TensorMap centroids) {
  extern __shared__ __align__(1024) unsigned char memory[];
  filter<Kind>(arguments, &centroids, shared_address(memory));
}

// What the host has to ask for.
extern "C" __device__ const int filter_rows_launch[2] = {Kind::kThreads, Kind::kBytes};
