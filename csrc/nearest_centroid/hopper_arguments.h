// What the Hopper filter is given: see FilterArguments. Plain memory, the same for host and device.
#pragma once

namespace clustermim::hopper {

// Rows that are patches of images, in elements.
struct ImageStrides {
  long long image, channel, line, pixel;
};

// The names are those of ops/nearest_centroid/triton_filter.py and docs/certificate.md, section 8.
struct FilterArguments {
  const void* x;
  long long row_stride, column_stride;  // of a matrix, in elements
  ImageStrides strides;                 // of images
  const float* bias;                    // [column_tiles * 128], -inf where none may win
  const signed char* near;              // [column_tiles * 128]
  const void* frame;                    // float32 [depth], or float16 of a line's weights
  const double* scale;                  // [1]
  const int* facts;                     // the bits of five float32
  long long* ids;                       // [num_rows]
  int* counters;
  int* open_rows;      // [num_rows]
  float* open_limits;  // [num_rows]
  int num_rows;
  int dim;           // values of a row; the rest up to the depth are zeros
  int column_tiles;  // of 128 centroids
  float accumulation, factor, tiny, rho_square;
};
static_assert(sizeof(FilterArguments) == 160, "cuda_filter.py packs it");

}  // namespace clustermim::hopper
