#include "assign/image_rows.h"

#include <algorithm>
#include <cmath>

namespace clustermim {
namespace {

constexpr int64_t kLine = 256;  // pixels of a strip of patches

// Lines of `count` pixels of kChannels planes to values, side by side in `to`: contiguous stores.
template <int kChannels>
void look_up(const float* table, const uint8_t* pixels, int64_t plane, int64_t count, float* to) {
  const auto read = [&](int64_t j) {
#pragma GCC unroll 4
    for (int c = 0; c < kChannels; ++c) {
      to[j * kChannels + c] = table[c * 256 + pixels[c * plane + j]];
    }
  };
  int64_t j = 0;
  for (; j + 8 <= count; j += 8) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) read(j + i);
  }
  for (; j < count; ++j) read(j);
}

}  // namespace

Status check_images(const char* op, const ImageView& v) {
  if (v.batch < 0 || v.channels < 0 || v.height < 0 || v.width < 0 || v.patch_size < 1 ||
      v.height % v.patch_size != 0 || v.width % v.patch_size != 0) {
    return Status::error(StatusCode::invalid_argument,
                         "%s: H and W must be multiples of patch_size", op);
  }
  const bool any = v.batch * v.patches() * v.channels > 0;
  return check_pointer(op, "images", v.data, any);
}

ImageRows::ImageRows(const ImageView& images) : images_(images) {
  const int64_t channels = images_.channels;
  mean_.assign(channels, 0.0f);
  std_.assign(channels, 1.0f);
  if (images_.mean) std::copy_n(images_.mean, channels, mean_.begin());
  if (images_.std) std::copy_n(images_.std, channels, std_.begin());
  for (int64_t c = 0; c < channels; ++c) plain_ = plain_ && mean_[c] == 0.0f && std_[c] == 1.0f;
  if (images_.dtype != DType::u8) return;
  table_.resize(channels * 256);
  for (int64_t c = 0; c < channels; ++c) {
    for (int u = 0; u < 256; ++u) {
      const float pixel = static_cast<float>(u) / 255.0f;
      const float centred = pixel - mean_[c];
      table_[c * 256 + u] = centred / std_[c];
    }
  }
}

float ImageRows::largest_u8_value() const {
  float largest = 0.0f;
  for (float v : table_) largest = std::max(largest, std::abs(v));
  return largest;
}

int64_t ImageRows::offset(int64_t channel, int64_t i, int64_t j) const {
  const int64_t p = images_.patch_size;
  return images_.order == PatchOrder::hwc ? (i * p + j) * images_.channels + channel
                                          : (channel * p + i) * p + j;
}

// Patches side by side, all of one pixel row before the next. kPatch is their size and then pixels
// lie side by side too, or 0.
template <typename E, int64_t kPatch>
void ImageRows::read_strip(const E* corner, int64_t patches, float* out) const {
  const int64_t p = kPatch > 0 ? kPatch : images_.patch_size, dim = images_.dim();
  const int64_t* s = images_.strides;
  const int64_t next = kPatch > 0 ? 1 : s[3];
  const int64_t step = offset(0, 0, 1) - offset(0, 0, 0);  // between neighbours in a pixel row
  if constexpr (__is_same(E, uint8_t) && kPatch != 4) {
    const bool rgb = step == 3 && images_.channels == 3;
    if (next == 1 && (rgb || step == 1)) {
      for (int64_t c = 0; c < (rgb ? 1 : images_.channels); ++c) {
        for (int64_t i = 0; i < p; ++i) {
          for (int64_t q = 0; q < patches; ++q) {
            (rgb ? look_up<3> : look_up<1>)(u8_values(c), corner + c * s[1] + i * s[2] + q * p,
                                            s[1], p, out + q * dim + offset(c, i, 0));
          }
        }
      }
      return;
    }
  }
  for (int64_t c = 0; c < images_.channels; ++c) {
    const float mean = mean_[c], std = std_[c];
    const float* table = table_.empty() ? nullptr : table_.data() + c * 256;
    for (int64_t i = 0; i < p; ++i) {
      const E* pixel = corner + c * s[1] + i * s[2];
      float* to = out + offset(c, i, 0);
      const auto write = [&](auto value) {
        for (int64_t q = 0; q < patches; ++q) {
          for (int64_t j = 0; j < p; ++j) to[q * dim + j * step] = value(q * p + j);
        }
      };
      if constexpr (__is_same(E, uint8_t)) {
        write([&](int64_t k) { return table[pixel[k * next]]; });
      } else if (plain_) {
        write([&](int64_t k) { return to_float(pixel[k * next]); });
      } else {
        float line[kLine];  // divided several at a time
        if (p * patches <= kLine) {
          for (int64_t k = 0; k < p * patches; ++k) {
            const float centred = to_float(pixel[k * next]) - mean;
            line[k] = centred / std;
          }
          write([&](int64_t k) { return line[k]; });
        } else {
          write([&](int64_t k) {
            const float centred = to_float(pixel[k * next]) - mean;
            return centred / std;
          });
        }
      }
    }
  }
}

template <typename E>
void ImageRows::read_patches(int64_t row, int64_t count, float* out) const {
  const int64_t p = images_.patch_size, patches = images_.patches(), width = images_.grid_width();
  const int64_t* s = images_.strides;
  const int64_t most = std::max<int64_t>(1, kLine / p);
  for (int64_t done = 0; done < count;) {
    const int64_t image = (row + done) / patches, patch = (row + done) % patches;
    const int64_t top = patch / width, left = patch % width;
    const int64_t strip = std::min({count - done, width - left, most});
    const E* corner =
        static_cast<const E*>(images_.data) + image * s[0] + top * p * s[2] + left * p * s[3];
    float* to = out + done * images_.dim();
    if (p == 4 && s[3] == 1) {
      read_strip<E, 4>(corner, strip, to);
    } else if (p == 16 && s[3] == 1) {
      read_strip<E, 16>(corner, strip, to);
    } else {
      read_strip<E, 0>(corner, strip, to);
    }
    done += strip;
  }
}

void ImageRows::normalize_patch(float* patch) const {
  const int64_t p = images_.patch_size, dim = images_.dim();
  const auto each_in_order = [&](auto visit) {
    for (int64_t i = 0; i < p; ++i) {
      for (int64_t j = 0; j < p; ++j) {
        for (int64_t c = 0; c < images_.channels; ++c) visit(patch[offset(c, i, j)]);
      }
    }
  };
  double sum = 0.0;
  each_in_order([&](float v) { sum += v; });
  const double mean = sum / static_cast<double>(dim);
  double squares = 0.0;
  each_in_order([&](float v) {
    const double centred = v - mean;
    squares += centred * centred;
  });
  const double deviation = std::sqrt(squares / static_cast<double>(dim - 1) + 1e-6);
  for (int64_t d = 0; d < dim; ++d) {
    patch[d] = static_cast<float>((static_cast<double>(patch[d]) - mean) / deviation);
  }
}

const float* ImageRows::rows(int64_t begin, int64_t count, float* scratch, int64_t* stride) const {
  const int64_t dim = images_.dim();
  visit_dtype(images_.dtype, [&](auto element) {
    using E = decltype(element);
    read_patches<E>(begin, count, scratch);
  });
  if (images_.per_patch_norm) {
    for (int64_t r = 0; r < count; ++r) normalize_patch(scratch + r * dim);
  }
  *stride = dim;
  return scratch;
}

}  // namespace clustermim
