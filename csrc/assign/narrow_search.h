// The narrow path of an Assigner: narrow.h's kernels, and the rows that they leave open.
#pragma once

#include <cstdint>
#include <vector>

#include "assign/candidates.h"
#include "assign/columns.h"
#include "assign/narrow.h"
#include "core/aligned_vector.h"

namespace clustermim {

// Centroids packed for the narrow path; not usable() when the filter is to be taken.
class NarrowPanels {
 public:
  NarrowPanels() = default;
  NarrowPanels(NarrowPanels&&) = default;  // a copy would point to the original's memory
  NarrowPanels& operator=(NarrowPanels&&) = default;

  // `panels`: the filter's tiles of all columns, `tile_bytes` apart, in one segment.
  void pack(const NarrowKernel& kernel, const Columns& columns, const char* panels,
            int64_t tile_bytes, const std::vector<float>& centre, float scale);
  bool usable() const { return kernel_ != nullptr; }
  const NarrowKernel& kernel() const { return *kernel_; }
  const NarrowBook& book() const { return book_; }
  // Of a column of the book the filter's, or -1.
  int32_t column(int64_t narrow_column) const { return order_[narrow_column]; }

 private:
  const NarrowKernel* kernel_ = nullptr;
  NarrowBook book_;
  AlignedVector<char> tiles_;
  std::vector<int32_t> order_, entry_of_;
  std::vector<float> shift_, tile_residual_;
};

// The narrow path's kernel for rows of `dim` float32 values, or null.
const NarrowKernel* narrow_kernel(const FilterKernel& filter, const Columns& columns, int64_t dim);

// One worker's scratch.
class NarrowSearch {
 public:
  NarrowSearch(const NarrowPanels& panels, const Columns& columns, int64_t block_rows);

  // entries [count]; those of rows with several candidates from decide(row, candidates): ascending,
  // null when every entry is one or the row is not finite.
  template <typename Decide>
  void run(const float* rows, int64_t stride, int64_t count, int32_t* entries, Decide&& decide) {
    const NarrowKernel& kernel = panels_.kernel();
    kernel.assign(panels_.book(), rows, stride, count, entries, &open_);
    // Memory is read all the time: behind what the kernel has asked for.
    const char* ahead = reinterpret_cast<const char*>(rows + (count + kNarrowAhead) * stride);
    const auto ask = [&] {
      for (int i = 0; i < kLinesAhead; ++i) __builtin_prefetch(ahead + i * 64, 0, 2);
      ahead += kLinesAhead * 64;
    };
    for (int64_t i = 0; i < open_.few; ++i) {
      ask();
      take_few(i);
      entries[open_.few_row[i]] = decide(open_.few_row[i], &candidates_);
    }
    for (int64_t begin = 0; begin < open_.rows; begin += kBatch) {
      const int64_t batch = kBatch < open_.rows - begin ? kBatch : open_.rows - begin;
      kernel.candidates(panels_.book(), rows, stride, open_.row + begin, open_.threshold + begin,
                        batch, {hit_columns_.data(), hit_scores_.data(), counts_, kCapacity});
      for (int64_t i = 0; i < batch; ++i) {
        const int64_t r = open_.row[begin + i];
        entries[r] = decide(r, take(begin + i, i) ? &candidates_ : nullptr);
      }
    }
  }

 private:
  static constexpr int64_t kBatch = 32, kCapacity = 256, kLinesAhead = 8;
  void take_few(int64_t open);
  bool take(int64_t open, int64_t hit);

  const NarrowPanels& panels_;
  const Columns& columns_;
  NarrowOpen open_ = {};
  std::vector<int32_t> lists_;  // what open_ points to
  std::vector<float> threshold_;
  std::vector<RowBounds> bounds_;
  std::vector<int32_t> hit_columns_;
  std::vector<float> hit_scores_;
  int32_t counts_[kBatch];
  std::vector<int32_t> candidates_;
};

}  // namespace clustermim
