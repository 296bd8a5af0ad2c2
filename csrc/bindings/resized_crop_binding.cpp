#include "resized_crop/resized_crop.h"

#include <pybind11/pybind11.h>

#include "bindings/raise_status.h"

namespace clustermim::bindings {
namespace {

void resized_crop(uintptr_t images, uintptr_t heights, uintptr_t widths, uintptr_t boxes,
                  uintptr_t flip, uintptr_t out, int64_t batch, int64_t channels,
                  int64_t out_height, int64_t out_width, int threads) {
  ResizedCropArgs args;
  args.images = pointer<const uint64_t>(images);
  args.heights = pointer<const int64_t>(heights);
  args.widths = pointer<const int64_t>(widths);
  args.boxes = pointer<const int64_t>(boxes);
  args.flip = pointer<const bool>(flip);
  args.out = pointer<uint8_t>(out);
  args.batch = batch;
  args.channels = channels;
  args.out_height = out_height;
  args.out_width = out_width;
  args.threads = threads;
  Status status;
  {
    const pybind11::gil_scoped_release release;
    status = resized_crop_cpu(args);
  }
  raise_if_error(status);
}

}  // namespace

void register_resized_crop(pybind11::module_& m) {
  using pybind11::arg;
  m.def("resized_crop", &resized_crop, pybind11::kw_only(), arg("images"), arg("heights"),
        arg("widths"), arg("boxes"), arg("flip"), arg("out"), arg("batch"), arg("channels"),
        arg("out_height"), arg("out_width"), arg("threads"));
}

}  // namespace clustermim::bindings
