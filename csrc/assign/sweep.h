// A block of rows past all columns: for each row the columns that the filter's scores cannot
// exclude.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "assign/columns.h"
#include "assign/filter.h"

namespace clustermim {

class Sweep {
 public:
  // Rows come in strips of `strip_rows`, columns in chunks of at most `chunk_tiles`.
  Sweep(const Columns& columns, int64_t block_rows, int64_t strip_rows, int64_t chunk_tiles,
        const ScanKernel& scan);

  // The bounds of row r of the block, set before `run`.
  RowBounds& row(int64_t r) { return rows_[r]; }

  // `load(first_row, count)` makes a strip ready and sets its `row` bounds; called once a strip,
  // right before its first scores. `scores(first_row, count, first_tile, tiles, out, out_stride)`
  // writes the scores of a strip against a chunk: out [strip_rows, tiles * tile].
  template <typename Load, typename Scores>
  void run(int64_t count, Load&& load, Scores&& scores) {
    start(count);
    bool first = true;
    for (size_t s = 0; s < columns_.segments.size(); ++s) {
      const Segment& segment = columns_.segments[s];
      start_segment(count);
      for (int64_t t = 0; t < segment.tiles; t += chunk_tiles_) {
        const int64_t tiles = chunk_tiles_ < segment.tiles - t ? chunk_tiles_ : segment.tiles - t;
        for (int64_t r = 0; r < count; r += strip_rows_) {
          const int64_t rows = strip_rows_ < count - r ? strip_rows_ : count - r;
          if (first) load(r, rows);
          scores(r, rows, segment.first_tile + t, tiles, scores_.data(), stride_, first);
          search(r, rows, (segment.first_tile + t) * columns_.tile, tiles * columns_.tile,
                 static_cast<int32_t>(s));
        }
        first = false;
      }
    }
  }

  // The entry of a row that has one candidate only, else -1.
  int32_t only_entry(int64_t r) const {
    return counts_[r] == 1 && columns_.far_entries.empty() ? columns_.entry_of[hits(r)[0]] : -1;
  }
  // All candidates of a row, ascending, after each one's own bounds were tried; false: too many to
  // have been kept, every entry is a candidate.
  bool take_candidates(int64_t r, std::vector<int32_t>& entries) const;

 private:
  static constexpr int64_t kCapacity = 256;  // candidates of a row
  void start(int64_t count);
  void start_segment(int64_t count);
  void search(int64_t first_row, int64_t count, int64_t first_column, int64_t num_columns,
              int32_t segment);
  const int32_t* hits(int64_t r) const { return hit_columns_.get() + r * kCapacity; }

  const Columns& columns_;
  int64_t strip_rows_, chunk_tiles_, stride_;
  const ScanKernel& scan_;
  AlignedVector<float> scores_, peaks_;
  std::vector<RowBounds> rows_;
  std::vector<float> best_, threshold_;  // of this segment so far
  std::vector<int32_t> owner_, counts_;
  // of a strip; `open`: its rows that have scores above their thresholds
  std::vector<float> strip_max_, open_best_, open_threshold_;
  std::vector<int32_t> open_, open_owner_;
  std::vector<RowBounds> open_rows_;
  std::unique_ptr<int32_t[]> hit_columns_;
  std::unique_ptr<float[]> hit_scores_;
};

}  // namespace clustermim
