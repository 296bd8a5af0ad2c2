// Cuts a box out of each uint8 image, mirrors it where asked, and resizes it: antialiased bicubic
// in integers, the same numbers as torch's resize of uint8 images (upsample_bicubic2d_aa).
//
//   images   [batch] addresses of planar images [channels, heights[i], widths[i]], each contiguous
//   boxes    [batch, 4]  int64: top, left, height, width, inside of the image
//   flip     [batch]     bool, true = mirrored left to right
//   out      [batch, channels, out_height, out_width]   uint8, contiguous
//
// Weights: float64 a = -0.5 cubic of support 2 max(1, scale), normalised, times 2^shift to int16,
// half away from zero; sums int32, rounded half up, clamped to 0..255; rows first, then columns,
// uint8 in between. The same on every path and for any number of threads. Workspace: a box at the
// width of the output, for each thread. |sums| < 2^31 for scales below 100 (larger:
// invalid_argument).
#pragma once

#include <cstdint>

#include "core/status.h"

namespace clustermim {

struct ResizedCropArgs {
  const uint64_t* images = nullptr;
  const int64_t* heights = nullptr;
  const int64_t* widths = nullptr;
  const int64_t* boxes = nullptr;
  const bool* flip = nullptr;
  uint8_t* out = nullptr;
  int64_t batch = 0, channels = 3, out_height = 0, out_width = 0;
  int threads = 1;
};

Status resized_crop_cpu(const ResizedCropArgs& args);

}  // namespace clustermim
