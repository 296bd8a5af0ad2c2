// One Lloyd iteration's assignment and accumulation, for rows of a matrix or patches of images.
//
//   ids      [rows]     out, as nearest_centroid
//   sums     [K, dim]   out, float64: the (weighted) sum of each centroid's rows
//   counts   [K]        out: int64, or float64 sums of weights when weights are given
//   inertia  [1]        out: sum of |x - c|^2 in the direct form (cosine: 1 - cos; dot: -dot)
//
// Rows of id -1 are left out. Deterministic: the order in which rows are added depends on the data
// and their sizes, not on the number of threads, and sums, counts and inertia are the same on every
// ISA path. For uint8 images values and costs are rounded to multiples of 2^-28 and summed as
// integers, so that parts of the data add up to the whole bit for bit.
//
// Workspace, whatever the number of rows: the codebook (assign/codebook.h), a copy of float16 and
// bfloat16 centroids, and either 2 MiB of sums and 512 KiB of copied rows for each thread, or,
// where K * D * 8 is beyond 1 MiB, 16 MiB of copied rows. Rows of a float32 or float64 matrix are
// not copied.
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
