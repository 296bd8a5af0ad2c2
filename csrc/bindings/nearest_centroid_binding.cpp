#include "nearest_centroid/nearest_centroid.h"

#include "bindings/assign_arguments.h"

namespace clustermim::bindings {
namespace {

Tiers nearest_centroid(uintptr_t x, int x_dtype, int64_t x_row_stride, int64_t num_rows,
                       int64_t dim, uintptr_t centroids, int centroids_dtype,
                       int64_t centroids_row_stride, int64_t num_centroids,
                       const std::string& metric, uintptr_t ids, uintptr_t distance, int threads) {
  NearestCentroidArgs args;
  args.x = matrix(x, x_dtype, num_rows, dim, x_row_stride);
  args.centroids = matrix(centroids, centroids_dtype, num_centroids, dim, centroids_row_stride);
  args.metric = parse_metric(metric);
  args.ids = pointer<int64_t>(ids);
  args.value = pointer<double>(distance);
  args.threads = threads;
  TierCounts tiers;
  Status status;
  {
    const pybind11::gil_scoped_release release;
    status = nearest_centroid_cpu(args, &tiers);
  }
  raise_if_error(status);
  return as_tuple(tiers);
}

}  // namespace

void register_nearest_centroid(pybind11::module_& m) {
  using pybind11::arg;
  m.def("nearest_centroid", &nearest_centroid, pybind11::kw_only(), arg("x"), arg("x_dtype"),
        arg("x_row_stride"), arg("num_rows"), arg("dim"), arg("centroids"), arg("centroids_dtype"),
        arg("centroids_row_stride"), arg("num_centroids"), arg("metric"), arg("ids"),
        arg("distance"), arg("threads"));
}

}  // namespace clustermim::bindings
