// The nearest of a few candidates: float32, then float64, then exact arithmetic.
#pragma once

#include <cstdint>
#include <vector>

#include "assign/codebook.h"
#include "assign/metric.h"

namespace clustermim {

template <typename T>
class Decider {
 public:
  explicit Decider(const Codebook& codebook)
      : book_(codebook),
        scratch_{std::vector<double>(codebook.dim), std::vector<double>(codebook.dim)} {}

  // The entry nearest to `row` (finite) among `candidates`, ascending; they are used up.
  int32_t decide(const T* row, std::vector<int32_t>& candidates, TierCounts& tiers);
  // The same among all entries.
  int32_t decide_all(const T* row, TierCounts& tiers);

 private:
  void drop_by_float32(const float* row, std::vector<int32_t>& candidates);
  int32_t decide_by_float64(const T* row, const std::vector<int32_t>& candidates,
                            TierCounts& tiers);

  const Codebook& book_;
  std::vector<double> scratch_[2];
  std::vector<int32_t> all_;
  std::vector<float> distance_;
  std::vector<double> lower_;
};

}  // namespace clustermim
