#include "patch_tokens/patch_tokens.h"

#include "bindings/assign_arguments.h"

namespace clustermim::bindings {
namespace {

Tiers patch_tokens(uintptr_t images, int images_dtype, int64_t batch, int64_t channels,
                   int64_t height, int64_t width, const std::array<int64_t, 4>& image_strides,
                   int64_t patch_size, const Channels& mean, const Channels& std,
                   bool per_patch_norm, const std::string& patch_order, uintptr_t centroids,
                   int centroids_dtype, int64_t centroids_row_stride, int64_t num_centroids,
                   const std::string& metric, uintptr_t ids, int threads) {
  const Images source(images, images_dtype, batch, channels, height, width, image_strides,
                      patch_size, mean, std, per_patch_norm, patch_order);
  PatchTokensArgs args;
  args.images = source.view;
  args.centroids =
      matrix(centroids, centroids_dtype, num_centroids, source.view.dim(), centroids_row_stride);
  args.metric = parse_metric(metric);
  args.ids = pointer<int64_t>(ids);
  args.threads = threads;
  TierCounts tiers;
  Status status;
  {
    const pybind11::gil_scoped_release release;
    status = patch_tokens_cpu(args, &tiers);
  }
  raise_if_error(status);
  return as_tuple(tiers);
}

}  // namespace

void register_patch_tokens(pybind11::module_& m) {
  using pybind11::arg;
  m.def("patch_tokens", &patch_tokens, pybind11::kw_only(), arg("images"), arg("images_dtype"),
        arg("batch"), arg("channels"), arg("height"), arg("width"), arg("image_strides"),
        arg("patch_size"), arg("mean"), arg("std"), arg("per_patch_norm"), arg("patch_order"),
        arg("centroids"), arg("centroids_dtype"), arg("centroids_row_stride"), arg("num_centroids"),
        arg("metric"), arg("ids"), arg("threads"));
}

}  // namespace clustermim::bindings
