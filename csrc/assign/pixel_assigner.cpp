#include "assign/pixel_assigner.h"

#include <algorithm>
#include <memory>
#include <numeric>

#include "core/parallel_for.h"

namespace clustermim {
namespace {

constexpr int64_t kBlockBytes = 512 * 1024;  // packed rows; the second-level cache has 1 or 2 MiB
constexpr int64_t kChunkBytes = 768 * 1024;  // packed centroids that a strip of rows passes at once
constexpr int64_t kMaxBlockRows = 512;
constexpr int64_t kMaxChunkColumns = 512;  // a strip's scores stay near the first-level cache

int64_t chunk_tiles(const PixelCodebook& book) {
  return std::clamp<int64_t>(kChunkBytes / book.tile_bytes(), 1, kMaxChunkColumns / kPixelTile);
}

}  // namespace

int64_t block_rows(const PixelCodebook& book) {
  const int64_t strip = book.kernel.strip_rows;
  return std::clamp(kBlockBytes / book.row_bytes(), strip, kMaxBlockRows) / strip * strip;
}

PixelAssigner::PixelAssigner(const PixelCodebook& codebook, const ImageView& images,
                             const ImageRows& values)
    : book_(codebook),
      images_(images),
      values_(values),
      sweep_(codebook.columns, block_rows(codebook), codebook.kernel.strip_rows,
             chunk_tiles(codebook), codebook.book.kernel->scan),
      decider_(codebook.book),
      packed_(block_rows(codebook) * codebook.row_bytes(), 128),
      norm2_(codebook.kernel.strip_rows),
      row_(codebook.dim) {}

const uint8_t* PixelAssigner::patch(int64_t row) const {
  const int64_t p = images_.patch_size, patches = images_.patches();
  const int64_t in_image = row % patches, columns = images_.grid_width();
  const int64_t* s = images_.strides;
  return static_cast<const uint8_t*>(images_.data) + row / patches * s[0] +
         in_image / columns * p * s[2] + in_image % columns * p * s[3];
}

// Patches [begin, begin + count) to rows from `first` of the block on.
void PixelAssigner::load(int64_t begin, int64_t first, int64_t count) {
  const int64_t columns = images_.grid_width(), total = values_.num_rows();
  const PixelLayout& layout = book_.layout;
  uint8_t* const packed = packed_.data() + first * book_.row_bytes();
  for (int64_t r = 0, run = 0; r < count; r += run) {
    const int64_t row = begin + r;
    uint8_t* to = packed + r * book_.row_bytes();
    const uint8_t* from = patch(row);
    run = std::min(columns - row % columns, count - r);
    if (layout.in_runs) {
      const uint8_t* ahead = row + columns < total ? patch(row + columns) : nullptr;
      book_.kernel.pack_rows(layout.runs, from, ahead, run, to, book_.row_bytes());
      continue;
    }
    for (int64_t i = 0; i < run; ++i, to += book_.row_bytes()) {
      const uint8_t* pixels = from + i * images_.patch_size * images_.strides[3];
      for (int64_t k = 0; k < book_.dim; ++k) to[k] = pixels[layout.offset[k]];
    }
  }
  book_.kernel.norms(packed, book_.row_bytes(), count, book_.padded_dim, book_.weights.data(),
                     book_.group_weights.empty() ? nullptr : book_.group_weights.data(),
                     norm2_.data());
  for (int64_t r = 0; r < count; ++r) {
    sweep_.row(first + r) = {row_bounds(norm2_[r], 0.0f, book_.dim).norm, book_.row_residual};
  }
}

void PixelAssigner::filter(int64_t begin, int64_t count) {
  const PixelKernel& kernel = book_.kernel;
  kernel.enter();
  sweep_.run(
      count, [&](int64_t first, int64_t rows) { load(begin + first, first, rows); },
      [&](int64_t first, int64_t rows, int64_t tile, int64_t tiles, float* out, int64_t stride,
          bool) {
        const int64_t column = tile * kPixelTile;
        kernel.scores(packed_.data() + first * book_.row_bytes(), book_.row_bytes(), rows,
                      book_.panels.data() + tile * book_.tile_bytes(), book_.start.data() + column,
                      book_.sigma.data() + column, book_.columns.bias.data() + column, tiles,
                      book_.steps(), out, stride);
      });
  kernel.leave();
}

int32_t PixelAssigner::nearest(int64_t row, int64_t r) {
  const int32_t only = sweep_.only_entry(r);
  if (only >= 0) return only;
  if (!sweep_.take_candidates(r, candidates_)) {
    candidates_.resize(book_.book.entries());
    std::iota(candidates_.begin(), candidates_.end(), 0);
  }
  if (candidates_.size() > 1 && book_.columns.far_entries.empty()) drop_by_fine_scores(r);
  if (candidates_.size() == 1) return candidates_[0];
  int64_t stride = 0;
  const float* values = values_.rows(row, 1, row_.data(), &stride);
  return decider_.decide(values, candidates_, tiers);
}

// Leaves the candidates that 16 bits, each with its own bounds, cannot exclude.
void PixelAssigner::drop_by_fine_scores(int64_t r) {
  const uint8_t* row = packed_.data() + r * book_.row_bytes();
  fine_.clear();
  for (int32_t e : candidates_) fine_.push_back(book_.fine_score(row, e));
  const size_t best = std::max_element(fine_.begin(), fine_.end()) - fine_.begin();
  const int32_t owner = 0;
  SegmentBounds pair[2] = {book_.fine[candidates_[best]].bounds, {}};
  size_t kept = 0;
  for (size_t i = 0; i < candidates_.size(); ++i) {
    pair[1] = book_.fine[candidates_[i]].bounds;
    float threshold = 0.0f;
    thresholds(Metric::euclidean, book_.columns.error, pair, 1, &sweep_.row(r), &fine_[best],
               &owner, 1, &threshold);
    if (fine_[i] >= threshold) candidates_[kept++] = candidates_[i];
  }
  candidates_.resize(kept);
}

void PixelAssigner::assign(int64_t begin, int64_t count, int64_t* ids) {
  filter(begin, count);
  for (int64_t r = 0; r < count; ++r) ids[r] = book_.book.ids[nearest(begin + r, r)];
}

Status assign_pixels(const PixelCodebook& codebook, const ImageView& images,
                     const ImageRows& values, int threads, int64_t* ids, TierCounts* tiers) {
  const int64_t block = block_rows(codebook), total = values.num_rows();
  std::vector<std::unique_ptr<PixelAssigner>> workers(std::max(threads, 1));
  auto body = [&](int64_t task, int index) {
    auto& worker = workers[index];
    if (!worker) worker = std::make_unique<PixelAssigner>(codebook, images, values);
    const int64_t begin = task * block;
    worker->assign(begin, std::min(block, total - begin), ids + begin);
  };
  CMIM_RETURN_IF_ERROR(parallel_for(threads, (total + block - 1) / block, body));
  for (const auto& worker : workers) {
    if (worker) tiers->add(worker->tiers);
  }
  return Status();
}

}  // namespace clustermim
