// Rows to the ids of their nearest centroids, exact in real arithmetic.
//
//   x          [num_rows, dim]       float32, float64, float16 or bfloat16; strides in elements
//   centroids  [num_centroids, dim]  any of these, num_centroids >= 1
//   ids        [num_rows]            out: lowest id among equally near; -1 for a row with NaN, Inf
//   value      [num_rows]            out, may be null: float64 squared distance or similarity
//
// Accumulators: float32 in the filter, under a rigorous bound; float64, then exact integers for
// what it leaves open. Deterministic: ids depend on the values alone. Every index is int64;
// num_centroids stays below 2^31. Workspace, freed before it returns: O(num_centroids * dim), and
// for each thread about 3 MiB and O(num_centroids + dim), whatever the number of rows.
#pragma once

#include "assign/metric.h"
#include "core/status.h"

namespace clustermim {

struct NearestCentroidArgs {
  MatrixView x;
  MatrixView centroids;
  Metric metric = Metric::euclidean;
  int64_t* ids = nullptr;
  double* value = nullptr;
  int threads = 1;
};

Status nearest_centroid_cpu(const NearestCentroidArgs& args, TierCounts* tiers);

}  // namespace clustermim
