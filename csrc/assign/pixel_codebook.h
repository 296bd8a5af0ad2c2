// Centroids for the filter of uint8 pixels: fixed point in units of a pixel's step, 8 bits for all
// and 16 bits for the few that 8 bits leave open.
//
// A pixel's value is approached by x^ = a (p - 128) + o, with a and o of its channel; o is the
// origin and `columns`' scale s the unit of the filter: x' = (x - o) s, c' = (c - o) s.
#pragma once

#include <cstdint>
#include <vector>

#include "assign/codebook.h"
#include "assign/columns.h"
#include "assign/image_rows.h"
#include "assign/pixels.h"

namespace clustermim {

// Which value of a patch each byte of a packed row is, and where the bytes are.
struct PixelLayout {
  explicit PixelLayout(const ImageView& images);

  bool in_runs = false;  // the patch's bytes stand in runs; else they are read one by one
  PatchRuns runs = {};
  std::vector<int64_t> offset;      // [dim] of a byte from the patch's first
  std::vector<int32_t> feature_of;  // [dim] its place in a row and a centroid
  std::vector<int32_t> channel_of;  // [dim]
};

// The kernel for assignment by `metric` to patches of these images; null where the float32 rows are
// to be taken: other values than 256 per channel, other bounds, or no 8-bit dot products.
const PixelKernel* pixel_kernel(Metric metric, const ImageView& images);

class PixelCodebook {
 public:
  // Keeps references to `book`, prepared and euclidean. `kernel` is pixel_kernel(...), not null.
  PixelCodebook(const Codebook& book, const PixelKernel& kernel, const ImageView& images,
                const ImageRows& values);

  // False: these centroids or values are out of the format's range; use the float32 rows.
  bool usable() const { return usable_; }
  // Allocates and packs.
  Status prepare(int threads);

  const Codebook& book;
  const PixelKernel& kernel;
  const PixelLayout layout;
  int64_t dim, padded_dim;
  Columns columns;
  AlignedVector<int8_t> panels;        // [tiles, tile_bytes]
  AlignedVector<int32_t> start;        // [columns]
  AlignedVector<float> sigma;          // [columns]
  AlignedVector<float> weights;        // [padded_dim] (a s)^2, rounded up; 0 for padding
  AlignedVector<float> group_weights;  // [padded_dim / 64], or empty
  float row_residual = 0.0f;           // |x' - x^'|, an upper bound for every row

  // The 16-bit form, by entry.
  struct Fine {
    int32_t start;
    float sigma, bias;
    SegmentBounds bounds;
  };
  std::vector<Fine> fine;             // [entries]; of far_entries, nothing
  AlignedVector<int8_t> fine_values;  // [entries][hi, lo][padded_dim]

  // T of the 16-bit form of an entry and a packed row.
  float fine_score(const uint8_t* row, int32_t entry) const;

  int64_t steps() const { return padded_dim / kPixelStep; }
  int64_t tile_bytes() const { return steps() * kPixelStepBytes; }
  int64_t row_bytes() const { return padded_dim + 64; }  // not a multiple of 4096

 private:
  void fit_values(const ImageRows& values, int64_t channels);
  double centred_norm(int64_t entry) const;
  void weigh();
  void pack_tile(int64_t tile, std::vector<float>& lengths);
  void pack_entry(int32_t entry, int64_t column, double* scratch, int8_t* v,
                  std::vector<float>& lengths);
  struct Rounded {
    float sigma;
    int32_t start;
    float bias, norm, residual;
  };
  Rounded quantise(const double* centred, double unit, int8_t* hi, int8_t* lo) const;

  bool usable_ = false;
  std::vector<double> step_, origin_, error_;  // [channels] a, o, max |value - x^|
  double scale_ = 1.0;
  // [dim], in the order of packed rows: A = a s, 1 / A, o.
  std::vector<double> scaled_step_, inverse_step_, feature_origin_;
};

}  // namespace clustermim
