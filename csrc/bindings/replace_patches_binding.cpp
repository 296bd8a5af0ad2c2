#include "replace_patches/replace_patches.h"

#include <pybind11/pybind11.h>

#include "bindings/raise_status.h"

namespace clustermim::bindings {
namespace {

void replace_patches(uintptr_t images, int64_t element_size, int64_t batch, int64_t channels,
                     int64_t height, int64_t width, int64_t patch_size, uintptr_t ids,
                     uintptr_t where, uintptr_t pixels, int64_t num_centroids, int threads) {
  ReplacePatchesArgs args;
  args.images = pointer<void>(images);
  args.element_size = element_size;
  args.batch = batch;
  args.channels = channels;
  args.height = height;
  args.width = width;
  args.patch_size = patch_size;
  args.ids = pointer<const int64_t>(ids);
  args.where = pointer<const bool>(where);
  args.pixels = pointer<const void>(pixels);
  args.num_centroids = num_centroids;
  args.threads = threads;
  Status status;
  {
    const pybind11::gil_scoped_release release;
    status = replace_patches_cpu(args);
  }
  raise_if_error(status);
}

}  // namespace

void register_replace_patches(pybind11::module_& m) {
  using pybind11::arg;
  m.def("replace_patches", &replace_patches, pybind11::kw_only(), arg("images"),
        arg("element_size"), arg("batch"), arg("channels"), arg("height"), arg("width"),
        arg("patch_size"), arg("ids"), arg("where"), arg("pixels"), arg("num_centroids"),
        arg("threads"));
}

}  // namespace clustermim::bindings
