// Pastes centroid pixels over chosen patches, in place.
//
//   images  [batch, channels, height, width]                    in and out, contiguous
//   ids     [batch, patches]                                    int64
//   where   [batch, patches]                                    bool
//   pixels  [num_centroids, patch_size, patch_size, channels]   as images: element_size bytes each
//
// A patch is replaced where `where` is true and its id >= 0; an id >= num_centroids there is
// index_error, found before anything is written.
#pragma once

#include <cstdint>

#include "core/status.h"

namespace clustermim {

struct ReplacePatchesArgs {
  void* images = nullptr;
  int64_t element_size = 1;
  int64_t batch = 0, channels = 0, height = 0, width = 0, patch_size = 1;
  const int64_t* ids = nullptr;
  const bool* where = nullptr;
  const void* pixels = nullptr;
  int64_t num_centroids = 0;
  int threads = 1;
};

Status replace_patches_cpu(const ReplacePatchesArgs& args);

}  // namespace clustermim
