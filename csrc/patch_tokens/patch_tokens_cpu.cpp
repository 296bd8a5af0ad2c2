#include "assign/assigner.h"
#include "assign/check_matrix.h"
#include "assign/pixel_assigner.h"
#include "core/kernel_call.h"
#include "patch_tokens/patch_tokens.h"

namespace clustermim {

Status patch_tokens_cpu(const PatchTokensArgs& args, TierCounts* tiers) {
  constexpr const char* op = "patch_tokens";
  CMIM_RETURN_IF_ERROR(check_images(op, args.images));
  CMIM_RETURN_IF_ERROR(check_centroids(op, args.centroids, args.images.dim()));
  const int64_t rows = args.images.batch * args.images.patches();
  CMIM_RETURN_IF_ERROR(check_pointer(op, "ids", args.ids, rows > 0));
  return kernel_call(op, [&] {
    const ImageRows source(args.images);
    Codebook codebook;
    if (const PixelKernel* kernel = pixel_kernel(args.metric, args.images)) {
      codebook.may_project = false;
      CMIM_RETURN_IF_ERROR(
          codebook.prepare(args.centroids, args.metric, args.threads, false, rows));
      // For narrow rows the search takes longer than the products, and float rows have the faster
      // one.
      if (!codebook.narrow.usable()) {
        PixelCodebook pixels(codebook, *kernel, args.images, source);
        CMIM_RETURN_IF_ERROR(pixels.prepare(args.threads));
        if (pixels.usable()) {
          return assign_pixels(pixels, args.images, source, args.threads, args.ids, tiers);
        }
      }
    } else {
      CMIM_RETURN_IF_ERROR(prepare_codebook<float>(source, args.centroids, args.metric,
                                                   args.threads, false, codebook));
    }
    return assign_rows<float>(source, codebook, args.threads, args.ids, nullptr, tiers);
  });
}

}  // namespace clustermim
