// The integer path of an Assigner: narrow_integers.h's kernels, and the rows that they leave open.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "assign/columns.h"
#include "assign/narrow_integers.h"
#include "core/aligned_vector.h"
#include "core/cpu_features.h"

namespace clustermim {

// The integer path's kernel for rows of `dim` float32 values, or null.
const IntegerKernel* integer_kernel(Isa isa, const Columns& columns, int64_t dim);

// Centroids as integers; not usable() when the filter is to be taken.
class IntegerPanels {
 public:
  IntegerPanels() = default;
  IntegerPanels(IntegerPanels&&) = default;  // a copy would point to the original's memory
  IntegerPanels& operator=(IntegerPanels&&) = default;

  // value(entry): its values [dim] in float64. `largest` >= |c'| of all entries, in the frame of
  // `centre` and `scale`, a power of two.
  void pack(const IntegerKernel& kernel, int64_t entries, const std::vector<float>& centre,
            float scale, double largest, const std::function<const double*(int64_t)>& value);
  bool usable() const { return kernel_ != nullptr; }
  const IntegerKernel& kernel() const { return *kernel_; }
  const IntegerBook& book() const { return book_; }

 private:
  const IntegerKernel* kernel_ = nullptr;
  IntegerBook book_;
  std::vector<float> centre_;
  AlignedVector<int32_t> panels_, start_, column_;
};

// One worker's scratch.
class IntegerSearch {
 public:
  IntegerSearch(const IntegerPanels& panels, int64_t block_rows);

  // entries [count]; those of rows with several candidates from decide(row, candidates): ascending,
  // null when every entry is one. Rows out of range, or not finite, are left to
  // beyond(first, count), once for each run of them.
  template <typename Decide, typename Beyond>
  void run(const float* rows, int64_t stride, int64_t count, int32_t* entries, Decide&& decide,
           Beyond&& beyond) {
    const IntegerKernel& kernel = panels_.kernel();
    kernel.assign(panels_.book(), rows, stride, count, entries, &open_);
    for (int64_t begin = 0; begin < open_.rows; begin += kernel.rows) {
      const int64_t batch = kernel.rows < open_.rows - begin ? kernel.rows : open_.rows - begin;
      kernel.candidates(panels_.book(), rows, stride, open_.row + begin, open_.threshold + begin,
                        batch, hits_.data(), counts_.data(), kCapacity);
      for (int64_t i = 0; i < batch; ++i) {
        const int64_t r = open_.row[begin + i];
        entries[r] = decide(r, take(i) ? &candidates_ : nullptr);
      }
    }
    for (int64_t i = 0, end; i < open_.beyonds; i = end) {
      for (end = i + 1; end < open_.beyonds && open_.beyond[end] == open_.beyond[end - 1] + 1;) {
        ++end;
      }
      beyond(open_.beyond[i], end - i);
    }
  }

 private:
  static constexpr int64_t kCapacity = 256;
  bool take(int64_t i);

  const IntegerPanels& panels_;
  IntegerOpen open_ = {};
  std::vector<int32_t> lists_;  // what open_ points to
  std::vector<int32_t> hits_, counts_, candidates_;
};

}  // namespace clustermim
