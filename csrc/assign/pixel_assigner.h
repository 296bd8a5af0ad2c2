// Patches of uint8 images to centroid ids, without their float32 values: the filter on pixels,
// then the float32 row for the patches that it leaves open.
#pragma once

#include <cstdint>
#include <vector>

#include "assign/decide.h"
#include "assign/pixel_codebook.h"
#include "assign/sweep.h"

namespace clustermim {

// One worker's scratch and counters. Ids do not depend on how patches are cut into blocks.
class PixelAssigner {
 public:
  // Keeps the references.
  PixelAssigner(const PixelCodebook& codebook, const ImageView& images, const ImageRows& values);

  // ids [count] of patches [begin, begin + count) of all images; count <= block_rows(codebook).
  void assign(int64_t begin, int64_t count, int64_t* ids);

  TierCounts tiers;

 private:
  const uint8_t* patch(int64_t row) const;
  void load(int64_t begin, int64_t first, int64_t count);
  void filter(int64_t begin, int64_t count);
  int32_t nearest(int64_t patch_row, int64_t block_row);
  void drop_by_fine_scores(int64_t block_row);

  const PixelCodebook& book_;
  const ImageView& images_;
  const ImageRows& values_;
  Sweep sweep_;
  Decider<float> decider_;
  AlignedVector<uint8_t> packed_;
  std::vector<float> norm2_, row_, fine_;
  std::vector<int32_t> candidates_;
};

int64_t block_rows(const PixelCodebook& codebook);

// Ids of all patches. `codebook` is usable.
Status assign_pixels(const PixelCodebook& codebook, const ImageView& images,
                     const ImageRows& values, int threads, int64_t* ids, TierCounts* tiers);

}  // namespace clustermim
