#include "assign/sweep.h"

#include <algorithm>

#include "assign/candidates.h"

namespace clustermim {

Sweep::Sweep(const Columns& columns, int64_t block_rows, int64_t strip_rows, int64_t chunk_tiles,
             const ScanKernel& scan)
    : columns_(columns),
      strip_rows_(strip_rows),
      chunk_tiles_(chunk_tiles),
      scan_(scan),
      rows_(block_rows),
      best_(block_rows),
      strip_max_(strip_rows),
      threshold_(strip_rows),
      owner_(block_rows),
      counts_(block_rows),
      hit_columns_(std::make_unique_for_overwrite<int32_t[]>(block_rows * kCapacity)),
      hit_scores_(std::make_unique_for_overwrite<float[]>(block_rows * kCapacity)) {
  int64_t most = 0;
  for (const Segment& s : columns.segments) {
    most = std::max(most, std::min(s.tiles, chunk_tiles) * columns.tile);
  }
  stride_ = most + 16;  // rows a multiple of 4096 bytes apart would share L1 sets
  scores_.resize(strip_rows * stride_);
}

void Sweep::start(int64_t count) {
  std::fill_n(best_.begin(), count, -std::numeric_limits<float>::infinity());
  std::fill_n(owner_.begin(), count, 0);
  std::fill_n(counts_.begin(), count, 0);
}

void Sweep::search(int64_t first_row, int64_t count, int64_t first_column, int64_t num_columns,
                   int32_t segment) {
  scan_.row_max(scores_.data(), stride_, count, num_columns, strip_max_.data());
  float* best = best_.data() + first_row;
  int32_t* owner = owner_.data() + first_row;
  for (int64_t r = 0; r < count; ++r) {
    owner[r] = strip_max_[r] > best[r] ? segment : owner[r];
    best[r] = strip_max_[r] > best[r] ? strip_max_[r] : best[r];
  }
  thresholds(columns_.metric, columns_.error, columns_.bounds.data(), segment,
             rows_.data() + first_row, best, owner, count, threshold_.data());
  scan_.select(scores_.data(), stride_, count, num_columns, threshold_.data(),
               static_cast<int32_t>(first_column),
               {hit_columns_.get() + first_row * kCapacity,
                hit_scores_.get() + first_row * kCapacity, counts_.data() + first_row, kCapacity});
}

bool Sweep::take_candidates(int64_t r, std::vector<int32_t>& entries) const {
  return clustermim::take_candidates(columns_, columns_.error, rows_[r], hits(r),
                                     hit_scores_.get() + r * kCapacity, counts_[r], kCapacity,
                                     entries);
}

}  // namespace clustermim
