// Python arguments shared by the ops that assign rows to centroids.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "assign/image_rows.h"
#include "assign/metric.h"
#include "bindings/raise_status.h"

namespace clustermim::bindings {

using Tiers = std::tuple<int64_t, int64_t, int64_t, int64_t>;
using Channels = std::optional<std::vector<double>>;

inline Tiers as_tuple(const TierCounts& t) {
  return {t.float32, t.float64, t.exact, t.invalid};
}

inline Metric parse_metric(const std::string& name) {
  if (name == "euclidean") return Metric::euclidean;
  if (name == "cosine") return Metric::cosine;
  if (name == "dot") return Metric::dot;
  throw pybind11::value_error("metric must be euclidean, cosine or dot, got '" + name + "'");
}

inline MatrixView matrix(uintptr_t data, int dtype, int64_t rows, int64_t cols,
                         int64_t row_stride) {
  return {pointer<const void>(data), static_cast<DType>(dtype), rows, cols, row_stride};
}

// Keeps the channel constants, rounded to float32, alive beside the view that points at them.
struct Images {
  ImageView view;
  std::vector<float> mean, std;

  Images(uintptr_t data, int dtype, int64_t batch, int64_t channels, int64_t height, int64_t width,
         const std::array<int64_t, 4>& strides, int64_t patch_size, const Channels& means,
         const Channels& stds, bool per_patch_norm, const std::string& order) {
    view.data = pointer<const void>(data);
    view.dtype = static_cast<DType>(dtype);
    view.batch = batch;
    view.channels = channels;
    view.height = height;
    view.width = width;
    for (int i = 0; i < 4; ++i) view.strides[i] = strides[i];
    view.patch_size = patch_size;
    view.mean = fill(mean, means, channels);
    view.std = fill(std, stds, channels);
    view.per_patch_norm = per_patch_norm;
    view.order = order == "chw" ? PatchOrder::chw : PatchOrder::hwc;
  }
  Images(const Images&) = delete;
  Images& operator=(const Images&) = delete;

 private:
  static const float* fill(std::vector<float>& to, const Channels& from, int64_t channels) {
    if (!from) return nullptr;
    if (static_cast<int64_t>(from->size()) != channels) {
      throw pybind11::value_error("mean and std must have one value a channel");
    }
    to.assign(from->begin(), from->end());
    return to.data();
  }
};

}  // namespace clustermim::bindings
