// Images to token ids: patchify, normalise in float32 and nearest centroid, without the patch
// matrix.
//
//   images     [batch, channels, height, width]  uint8 or floating, any strides
//   centroids  [num_centroids, patch_size^2 * channels]
//   ids        [batch, patches]  out, patches row-major; -1 for a patch with NaN or Inf
//
// Workspace: as nearest_centroid, whatever the number of images.
#pragma once

#include "assign/image_rows.h"
#include "assign/metric.h"
#include "core/status.h"

namespace clustermim {

struct PatchTokensArgs {
  ImageView images;
  MatrixView centroids;
  Metric metric = Metric::euclidean;
  int64_t* ids = nullptr;
  int threads = 1;
};

Status patch_tokens_cpu(const PatchTokensArgs& args, TierCounts* tiers);

}  // namespace clustermim
