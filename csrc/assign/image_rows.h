// Patches of images as rows of normalised float32 values, read in place.
#pragma once

#include <cstdint>
#include <vector>

#include "assign/row_source.h"
#include "core/status.h"

namespace clustermim {

enum class PatchOrder : int { hwc = 0, chw = 1 };

struct ImageView {
  const void* data = nullptr;
  DType dtype = DType::u8;
  int64_t batch = 0, channels = 0, height = 0, width = 0;
  int64_t strides[4] = {};  // of batch, channel, row, column, in elements
  int64_t patch_size = 1;
  const float* mean = nullptr;  // [channels], null for zeros
  const float* std = nullptr;   // [channels], null for ones
  bool per_patch_norm = false;
  PatchOrder order = PatchOrder::hwc;

  int64_t grid_width() const { return width / patch_size; }
  int64_t patches() const { return (height / patch_size) * grid_width(); }
  int64_t dim() const { return patch_size * patch_size * channels; }
};

Status check_images(const char* op, const ImageView& images);

// A pixel's value is (u8 / 255 - mean) / std, each step a float32 operation. per_patch_norm acts
// after it: mean and unbiased variance (+ 1e-6) of the patch, summed in float64 in (row, column,
// channel) order, the quotient rounded to float32 once.
class ImageRows final : public RowSource<float> {
 public:
  explicit ImageRows(const ImageView& images);
  int64_t num_rows() const override { return images_.batch * images_.patches(); }
  const float* rows(int64_t begin, int64_t count, float* scratch, int64_t* stride) const override;

  // [256] values of uint8 pixels of a channel (before per_patch_norm).
  const float* u8_values(int64_t channel) const { return table_.data() + channel * 256; }
  // Largest |value| a uint8 pixel can take (before per_patch_norm).
  float largest_u8_value() const;

 private:
  template <typename E>
  void read_patches(int64_t row, int64_t count, float* out) const;
  template <typename E, int64_t kPatch>
  void read_strip(const E* corner, int64_t patches, float* out) const;
  void normalize_patch(float* patch) const;
  int64_t offset(int64_t channel, int64_t i, int64_t j) const;

  ImageView images_;
  std::vector<float> mean_, std_;
  bool plain_ = true;         // floating pixels are their values
  std::vector<float> table_;  // [channels, 256], values of uint8 pixels
};

}  // namespace clustermim
