// The nearest of many centroids that rounding cannot tell apart, exactly and for several rows at
// once: what mass ties need (integer grids, centroids that are permutations of each other).
#pragma once

#include <cstdint>
#include <vector>

#include "assign/codebook.h"
#include "assign/exact_dot.h"
#include "core/aligned_vector.h"

namespace clustermim {

// One worker's memory: O(entries + kMaxRows * D), allocated when it is first used.
class ExactNearest {
 public:
  static constexpr int kMaxRows = 32;  // pass each centroid while it is in the cache

  explicit ExactNearest(const Codebook& codebook) : book_(codebook) {}

  // Whether rows can be decided here at all: centroids of float32 values whose sizes are not too
  // far apart. Reads the codebook at the first call.
  bool usable();

  // For finite rows [count], count <= kMaxRows: the best of `entries`, the first one among equal
  // ones; all entries if `entries` is null. -1 for a row whose values' sizes are too far apart.
  void decide(const float* const* rows, int count, const int32_t* entries, int64_t num_entries,
              int32_t* winners);

 private:
  // Values are multiples of 2^lowest below 2^highest in size.
  struct Grid {
    int lowest = 0, highest = 0;
    int width() const { return highest - lowest; }
    bool any = false;
    void add(const float* v, int64_t dim);
  };
  // How the scores of one row become integers: (high * high_scale << high_shift) + low * low_scale,
  // shifted by dot_shift, from a norm shifted by norm_shift.
  struct Plan {
    bool fits = false, one_sum = false;
    double start = 0.0, high_scale = 0.0, low_scale = 0.0;
    int high_shift = 0, dot_shift = 0, norm_shift = 0;
  };
  struct Best {
    Plan plan;
    __int128 score = 0;  // cosine: the dot product
    int32_t entry = -1;
  };
  void take(Best& best, int32_t entry, double high, double low) const;
  Plan plan(const Grid& row) const;
  static __int128 dot(const Plan& plan, double high, double low);
  void prepare();

  const Codebook& book_;
  bool prepared_ = false, usable_ = false;
  Grid grid_;
  int64_t stride_ = 0;
  AlignedVector<double> x_;      // [kMaxRows, stride_]
  std::vector<__int128> norms_;  // |c|^2 in units of 2^(2 lowest); not for dot
};

}  // namespace clustermim
