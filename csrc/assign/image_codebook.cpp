#include "assign/image_codebook.h"

#include "assign/assigner.h"

namespace clustermim {

Status prepare_image_codebook(const ImageView& images, const ImageRows& values,
                              const MatrixView& centroids, Metric metric, int threads,
                              bool keep_values, ImageCodebook& codebook) {
  const PixelKernel* kernel = pixel_kernel(metric, images);
  if (!kernel) {
    return prepare_codebook<float>(values, centroids, metric, threads, keep_values, codebook.rows);
  }
  codebook.rows.may_project = false;
  CMIM_RETURN_IF_ERROR(
      codebook.rows.prepare(centroids, metric, threads, keep_values, values.num_rows()));
  // For narrow rows the search takes longer than the products, and float rows have the faster one.
  if (codebook.rows.narrow.usable() || codebook.rows.integers.usable()) return Status();
  auto pixels = std::make_unique<PixelCodebook>(codebook.rows, *kernel, images, values);
  CMIM_RETURN_IF_ERROR(pixels->prepare(threads));
  if (pixels->usable()) codebook.pixels = std::move(pixels);
  return Status();
}

}  // namespace clustermim
