#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/cpu_features.h"
#include "core/kernel_call.h"
#include "core/parallel_for.h"
#include "resized_crop/resample.h"
#include "resized_crop/resized_crop.h"

namespace clustermim {
namespace {

constexpr double kMostScale = 100.0;

const ResampleKernels& kernels() {
#if defined(__x86_64__)
  if (current_isa() >= Isa::avx512) return kResampleAvx512;
  if (current_isa() >= Isa::avx2) return kResampleAvx2;
#endif
  return kResampleGeneric;
}

double cubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
  return 0.0;
}

// The weights of an axis, in torch's order of operations (compute_index_ranges_int16_weights).
class Axis {
 public:
  void set(int64_t inputs, int64_t outputs, bool mirrored) {
    const double scale = static_cast<double>(inputs) / static_cast<double>(outputs);
    const double support = scale >= 1.0 ? 2.0 * scale : 2.0;
    const double inverse = scale >= 1.0 ? 1.0 / scale : 1.0;
    const int64_t room = 2 * static_cast<int64_t>(std::ceil(support)) + 1;
    begin_.resize(outputs);
    count_.resize(outputs);
    values_.resize(outputs * room);
    double largest = 0.0;
    int64_t most = 0;
    for (int64_t i = 0; i < outputs; ++i) {
      const double center = scale * (static_cast<double>(i) + 0.5);
      int64_t low = static_cast<int64_t>(center - support + 0.5);
      int64_t high = static_cast<int64_t>(center + support + 0.5);
      low = low < 0 ? 0 : low;
      high = high > inputs ? inputs : high;
      double* values = &values_[i * room];
      double total = 0.0;
      for (int64_t j = 0; j < high - low; ++j) {
        values[j] = cubic((static_cast<double>(j + low) - center + 0.5) * inverse);
        total += values[j];
      }
      for (int64_t j = 0; j < high - low; ++j) {
        values[j] /= total;
        largest = values[j] > largest ? values[j] : largest;
      }
      begin_[i] = low;
      count_[i] = high - low;
      most = high - low > most ? high - low : most;
    }
    int shift = 0;
    while (shift < 22 && static_cast<int>(0.5 + largest * (1 << (shift + 1))) < (1 << 15)) ++shift;
    fix(inputs, outputs, room, most, shift, mirrored);
  }

  ResampleAxis view() const {
    return {first_.data(), weights_.data(), static_cast<int64_t>(first_.size()), taps_, shift_};
  }

 private:
  // Integers, with the same number of taps for every output; zeros where one has fewer.
  void fix(int64_t inputs, int64_t outputs, int64_t room, int64_t most, int shift, bool mirrored) {
    const int64_t even = most + most % 2, taps = even < inputs ? even : inputs;
    shift_ = shift;
    taps_ = static_cast<int>(taps);
    first_.resize(outputs);
    weights_.assign(outputs * taps, 0);
    for (int64_t i = 0; i < outputs; ++i) {
      const int64_t start = begin_[i] < inputs - taps ? begin_[i] : inputs - taps;
      for (int64_t j = 0; j < count_[i]; ++j) {
        const double value = values_[i * room + j] * (1 << shift);
        const int16_t weight = static_cast<int16_t>(value < 0.0 ? value - 0.5 : value + 0.5);
        const int64_t place = begin_[i] - start + j;
        weights_[i * taps + (mirrored ? taps - 1 - place : place)] = weight;
      }
      first_[i] = static_cast<int32_t>(mirrored ? inputs - start - taps : start);
    }
  }

  std::vector<int64_t> begin_, count_;
  std::vector<double> values_;
  std::vector<int32_t> first_;
  std::vector<int16_t> weights_;
  int taps_ = 0, shift_ = 1;
};

struct Scratch {
  Axis columns, rows;
  std::vector<uint8_t> lines;
};

void crop(const ResizedCropArgs& a, int64_t image, Scratch& scratch) {
  const int64_t* box = a.boxes + 4 * image;
  const int64_t top = box[0], left = box[1], height = box[2], width = box[3];
  const int64_t image_width = a.widths[image], plane = a.heights[image] * image_width;
  scratch.columns.set(width, a.out_width, a.flip[image]);
  scratch.rows.set(height, a.out_height, false);
  const ResampleAxis along = scratch.columns.view(), down = scratch.rows.view();
  const int64_t stride = (a.out_width + 63) / 64 * 64;
  const int64_t needed = height * stride + kResamplePad;
  if (static_cast<int64_t>(scratch.lines.size()) < needed) scratch.lines.resize(needed);
  const uint8_t* pixels = reinterpret_cast<const uint8_t*>(a.images[image]);
  const ResampleKernels& run = kernels();
  for (int64_t c = 0; c < a.channels; ++c) {
    const uint8_t* corner = pixels + c * plane + top * image_width + left;
    uint8_t* out = a.out + (image * a.channels + c) * a.out_height * a.out_width;
    run.along_rows(corner, image_width, height, width, along, scratch.lines.data(), stride);
    run.along_columns(scratch.lines.data(), stride, a.out_width, down, out, a.out_width);
  }
}

Status check(const ResizedCropArgs& a) {
  constexpr const char* op = "resized_crop";
  const bool any = a.batch > 0;
  CMIM_RETURN_IF_ERROR(check_pointer(op, "images", a.images, any));
  CMIM_RETURN_IF_ERROR(check_pointer(op, "boxes", a.boxes, any));
  CMIM_RETURN_IF_ERROR(check_pointer(op, "flip", a.flip, any));
  CMIM_RETURN_IF_ERROR(check_pointer(op, "out", a.out, any && a.channels > 0));
  if (a.out_height < 1 || a.out_width < 1) {
    return Status::error(StatusCode::invalid_argument, "%s: size must be positive", op);
  }
  for (int64_t i = 0; i < a.batch; ++i) {
    const int64_t* box = a.boxes + 4 * i;
    CMIM_RETURN_IF_ERROR(
        check_pointer(op, "images", reinterpret_cast<const void*>(a.images[i]), a.channels > 0));
    if (box[0] < 0 || box[1] < 0 || box[2] < 1 || box[3] < 1 || box[2] > a.heights[i] - box[0] ||
        box[3] > a.widths[i] - box[1]) {
      return Status::error(StatusCode::invalid_argument,
                           "%s: box %lld (top %lld, left %lld, height %lld, width %lld) must have "
                           "pixels and lie inside its image of %lld x %lld",
                           op, static_cast<long long>(i), static_cast<long long>(box[0]),
                           static_cast<long long>(box[1]), static_cast<long long>(box[2]),
                           static_cast<long long>(box[3]), static_cast<long long>(a.heights[i]),
                           static_cast<long long>(a.widths[i]));
    }
    if (static_cast<double>(box[2]) > kMostScale * static_cast<double>(a.out_height) ||
        static_cast<double>(box[3]) > kMostScale * static_cast<double>(a.out_width)) {
      return Status::error(StatusCode::invalid_argument,
                           "%s: box %lld is more than 100 times as large as the output; shrink "
                           "in two steps",
                           op, static_cast<long long>(i));
    }
  }
  return Status();
}

}  // namespace

Status resized_crop_cpu(const ResizedCropArgs& a) {
  CMIM_RETURN_IF_ERROR(check(a));
  return kernel_call("resized_crop", [&] {
    std::vector<Scratch> scratch(std::max(a.threads, 1));
    auto body = [&](int64_t image, int worker) { crop(a, image, scratch[worker]); };
    return parallel_for(a.threads, a.batch, body);
  });
}

}  // namespace clustermim
