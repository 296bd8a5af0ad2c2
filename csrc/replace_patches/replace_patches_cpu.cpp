#include "replace_patches/replace_patches.h"

#include "core/parallel_for.h"

namespace clustermim {
namespace {

template <typename E>
Status paste(const ReplacePatchesArgs& a) {
  const int64_t p = a.patch_size, grid_width = a.width / p, patches = (a.height / p) * grid_width;
  auto body = [&](int64_t image, int) {
    for (int64_t l = 0; l < patches; ++l) {
      const int64_t id = a.ids[image * patches + l];
      if (!a.where[image * patches + l] || id < 0) continue;
      const E* pixel = static_cast<const E*>(a.pixels) + id * p * p * a.channels;
      E* corner = static_cast<E*>(a.images) + image * a.channels * a.height * a.width +
                  l / grid_width * p * a.width + l % grid_width * p;
      for (int64_t i = 0; i < p; ++i) {
        for (int64_t j = 0; j < p; ++j) {
          for (int64_t c = 0; c < a.channels; ++c) {
            corner[(c * a.height + i) * a.width + j] = pixel[(i * p + j) * a.channels + c];
          }
        }
      }
    }
  };
  return parallel_for(a.threads, a.batch, body);
}

}  // namespace

Status replace_patches_cpu(const ReplacePatchesArgs& a) {
  constexpr const char* op = "replace_patches";
  if (a.patch_size < 1 || a.height % a.patch_size || a.width % a.patch_size) {
    return Status::error(StatusCode::invalid_argument,
                         "%s: H and W must be multiples of patch_size", op);
  }
  const int64_t patches = (a.height / a.patch_size) * (a.width / a.patch_size);
  const bool any = a.batch * patches > 0;
  CMIM_RETURN_IF_ERROR(check_pointer(op, "images", a.images, any && a.channels > 0));
  CMIM_RETURN_IF_ERROR(check_pointer(op, "ids", a.ids, any));
  CMIM_RETURN_IF_ERROR(check_pointer(op, "where", a.where, any));
  CMIM_RETURN_IF_ERROR(check_pointer(op, "pixels", a.pixels, any && a.channels > 0));
  for (int64_t i = 0; i < a.batch * patches; ++i) {
    if (a.where[i] && a.ids[i] >= a.num_centroids) {
      return Status::error(
          StatusCode::index_error, "%s: ids must be < K = %lld wherever `where` is True, got %lld",
          op, static_cast<long long>(a.num_centroids), static_cast<long long>(a.ids[i]));
    }
  }
  switch (a.element_size) {
    case 1: return paste<uint8_t>(a);
    case 2: return paste<uint16_t>(a);
    case 4: return paste<uint32_t>(a);
    case 8: return paste<uint64_t>(a);
  }
  return Status::error(StatusCode::invalid_argument, "%s: unknown element size", op);
}

}  // namespace clustermim
