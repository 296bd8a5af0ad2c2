// One Lloyd iteration's assignment and accumulation, for rows of a matrix or patches of images.
//
//   ids      [rows]     out, as nearest_centroid
//   sums     [K, dim]   out, float64: the (weighted) sum of each centroid's rows
//   counts   [K]        out: int64, or float64 sums of weights when weights are given
//   inertia  [1]        out: sum of |x - c|^2 in the direct form (cosine: 1 - cos; dot: -dot)
//
// Rows of id -1 are left out. Deterministic for any thread count: rows are added in their order,
// the threads share the columns. For uint8 images values and costs are rounded to multiples of
// 2^-28 and summed as integers, so that parts of the data add up to the whole bit for bit.
#pragma once

#include "assign/image_rows.h"
#include "assign/metric.h"
#include "core/status.h"

namespace clustermim {

struct LloydStepArgs {
  MatrixView centroids;
  const double* weights = nullptr;  // [rows], may be null
  Metric metric = Metric::euclidean;
  int64_t* ids = nullptr;
  double* sums = nullptr;
  void* counts = nullptr;
  double* inertia = nullptr;
  int threads = 1;
};

Status lloyd_step_cpu(const MatrixView& x, const LloydStepArgs& args, TierCounts* tiers);
Status lloyd_step_images_cpu(const ImageView& images, const LloydStepArgs& args, TierCounts* tiers);

}  // namespace clustermim
