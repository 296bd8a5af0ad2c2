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
      threshold_(block_rows),
      owner_(block_rows),
      counts_(block_rows),
      strip_max_(strip_rows),
      open_best_(strip_rows),
      open_threshold_(strip_rows),
      open_(strip_rows),
      open_owner_(strip_rows),
      open_rows_(strip_rows),
      hit_columns_(std::make_unique_for_overwrite<int32_t[]>(block_rows * kCapacity)),
      hit_scores_(std::make_unique_for_overwrite<float[]>(block_rows * kCapacity)) {
  int64_t most = 0;
  for (const Segment& s : columns.segments) {
    most = std::max(most, std::min(s.tiles, chunk_tiles) * columns.tile);
  }
  stride_ = most + 16;  // rows a multiple of 4096 bytes apart would share L1 sets
  scores_.resize(strip_rows * stride_);
  peaks_.resize(strip_rows * kPeaks);
}

void Sweep::start(int64_t count) {
  std::fill_n(best_.begin(), count, -std::numeric_limits<float>::infinity());
  std::fill_n(owner_.begin(), count, 0);
  std::fill_n(counts_.begin(), count, 0);
}

void Sweep::start_segment(int64_t count) {
  std::fill_n(threshold_.begin(), count, -std::numeric_limits<float>::infinity());
}

void Sweep::search(int64_t first_row, int64_t count, int64_t first_column, int64_t num_columns,
                   int32_t segment) {
  scan_.row_max(scores_.data(), stride_, count, num_columns, strip_max_.data(), peaks_.data());
  float *best = best_.data() + first_row, *threshold = threshold_.data() + first_row;
  int32_t* owner = owner_.data() + first_row;
  // A threshold that a row had before still excludes what is below it: most rows need no new one.
  int64_t num_open = 0;
  for (int64_t r = 0; r < count; ++r) {
    open_[num_open] = static_cast<int32_t>(r);
    num_open += strip_max_[r] >= threshold[r];
  }
  for (int64_t i = 0; i < num_open; ++i) {
    const int32_t r = open_[i];
    owner[r] = strip_max_[r] > best[r] ? segment : owner[r];
    best[r] = strip_max_[r] > best[r] ? strip_max_[r] : best[r];
    open_rows_[i] = rows_[first_row + r];
    open_best_[i] = best[r];
    open_owner_[i] = owner[r];
  }
  thresholds(columns_.metric, columns_.error, columns_.bounds.data(), segment, open_rows_.data(),
             open_best_.data(), open_owner_.data(), num_open, open_threshold_.data());
  for (int64_t i = 0; i < num_open; ++i) threshold[open_[i]] = open_threshold_[i];
  scan_.select(scores_.data(), stride_, peaks_.data(), open_.data(), num_open, num_columns,
               open_threshold_.data(), static_cast<int32_t>(first_column),
               {hit_columns_.get() + first_row * kCapacity,
                hit_scores_.get() + first_row * kCapacity, counts_.data() + first_row, kCapacity});
}

bool Sweep::take_candidates(int64_t r, std::vector<int32_t>& entries) const {
  return clustermim::take_candidates(columns_, columns_.error, rows_[r], hits(r),
                                     hit_scores_.get() + r * kCapacity, counts_[r], kCapacity,
                                     entries);
}

}  // namespace clustermim
