// Centroids made ready for the patches of images: of the pixels as they are where that is the
// faster way to the same ids, else of float32 rows.
#pragma once

#include <memory>

#include "assign/codebook.h"
#include "assign/pixel_codebook.h"

namespace clustermim {

struct ImageCodebook {
  Codebook rows;
  std::unique_ptr<PixelCodebook> pixels;  // refers to `rows`; null: take the float32 rows
};

// `values` are the rows of `images`. Keeps the views; `codebook` must stay where it is.
Status prepare_image_codebook(const ImageView& images, const ImageRows& values,
                              const MatrixView& centroids, Metric metric, int threads,
                              bool keep_values, ImageCodebook& codebook);

}  // namespace clustermim
