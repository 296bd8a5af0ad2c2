#include "assign/assigner.h"
#include "assign/check_matrix.h"
#include "assign/image_codebook.h"
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
    ImageCodebook codebook;
    CMIM_RETURN_IF_ERROR(prepare_image_codebook(args.images, source, args.centroids, args.metric,
                                                args.threads, false, codebook));
    if (codebook.pixels) {
      return assign_pixels(*codebook.pixels, args.images, source, args.threads, args.ids, tiers);
    }
    return assign_rows<float>(source, codebook.rows, args.threads, args.ids, nullptr, tiers);
  });
}

}  // namespace clustermim
