#include "lloyd_step/lloyd_step.h"

#include "bindings/assign_arguments.h"

namespace clustermim::bindings {
namespace {

LloydStepArgs common_arguments(const MatrixView& centroids, const std::string& metric,
                               uintptr_t ids, uintptr_t sums, uintptr_t counts, uintptr_t inertia,
                               int threads) {
  LloydStepArgs args;
  args.centroids = centroids;
  args.metric = parse_metric(metric);
  args.ids = pointer<int64_t>(ids);
  args.sums = pointer<double>(sums);
  args.counts = pointer<void>(counts);
  args.inertia = pointer<double>(inertia);
  args.threads = threads;
  return args;
}

Tiers lloyd_step(uintptr_t x, int x_dtype, int64_t x_row_stride, int64_t num_rows, int64_t dim,
                 uintptr_t weights, uintptr_t centroids, int centroids_dtype,
                 int64_t centroids_row_stride, int64_t num_centroids, const std::string& metric,
                 uintptr_t ids, uintptr_t sums, uintptr_t counts, uintptr_t inertia, int threads) {
  LloydStepArgs args =
      common_arguments(matrix(centroids, centroids_dtype, num_centroids, dim, centroids_row_stride),
                       metric, ids, sums, counts, inertia, threads);
  args.weights = pointer<const double>(weights);
  TierCounts tiers;
  Status status;
  {
    const pybind11::gil_scoped_release release;
    status = lloyd_step_cpu(matrix(x, x_dtype, num_rows, dim, x_row_stride), args, &tiers);
  }
  raise_if_error(status);
  return as_tuple(tiers);
}

Tiers lloyd_step_images(uintptr_t images, int images_dtype, int64_t batch, int64_t channels,
                        int64_t height, int64_t width, const std::array<int64_t, 4>& image_strides,
                        int64_t patch_size, const Channels& mean, const Channels& std,
                        bool per_patch_norm, const std::string& patch_order, uintptr_t centroids,
                        int centroids_dtype, int64_t centroids_row_stride, int64_t num_centroids,
                        const std::string& metric, uintptr_t ids, uintptr_t sums, uintptr_t counts,
                        uintptr_t inertia, int threads) {
  const Images source(images, images_dtype, batch, channels, height, width, image_strides,
                      patch_size, mean, std, per_patch_norm, patch_order);
  const LloydStepArgs args = common_arguments(
      matrix(centroids, centroids_dtype, num_centroids, source.view.dim(), centroids_row_stride),
      metric, ids, sums, counts, inertia, threads);
  TierCounts tiers;
  Status status;
  {
    const pybind11::gil_scoped_release release;
    status = lloyd_step_images_cpu(source.view, args, &tiers);
  }
  raise_if_error(status);
  return as_tuple(tiers);
}

}  // namespace

void register_lloyd_step(pybind11::module_& m) {
  using pybind11::arg;
  m.def("lloyd_step", &lloyd_step, pybind11::kw_only(), arg("x"), arg("x_dtype"),
        arg("x_row_stride"), arg("num_rows"), arg("dim"), arg("weights"), arg("centroids"),
        arg("centroids_dtype"), arg("centroids_row_stride"), arg("num_centroids"), arg("metric"),
        arg("ids"), arg("sums"), arg("counts"), arg("inertia"), arg("threads"));
  m.def("lloyd_step_images", &lloyd_step_images, pybind11::kw_only(), arg("images"),
        arg("images_dtype"), arg("batch"), arg("channels"), arg("height"), arg("width"),
        arg("image_strides"), arg("patch_size"), arg("mean"), arg("std"), arg("per_patch_norm"),
        arg("patch_order"), arg("centroids"), arg("centroids_dtype"), arg("centroids_row_stride"),
        arg("num_centroids"), arg("metric"), arg("ids"), arg("sums"), arg("counts"), arg("inertia"),
        arg("threads"));
}

}  // namespace clustermim::bindings
