// The nearest of a few candidates: float32, then float64, then exact arithmetic.
#pragma once

#include <cstdint>
#include <vector>

#include "assign/codebook.h"
#include "assign/exact_nearest.h"
#include "assign/metric.h"

namespace clustermim {

template <typename T>
class Decider {
 public:
  explicit Decider(const Codebook& codebook)
      : book_(codebook),
        exact_(codebook),
        scratch_{std::vector<double>(codebook.dim), std::vector<double>(codebook.dim)} {}

  // The entry nearest to `row` (finite) among `candidates`, ascending; they are used up.
  int32_t decide(const T* row, std::vector<int32_t>& candidates, TierCounts& tiers);
  // The same among all entries.
  int32_t decide_all(const T* row, TierCounts& tiers);
  // The same for several rows, count <= ExactNearest::kMaxRows, that nearly tie with many entries.
  void decide_ties(const T* const* rows, int count, int32_t* winners, TierCounts& tiers);

 private:
  void drop_by_float32(const float* row, std::vector<int32_t>& candidates);
  int32_t decide_by_float64(const T* row, const std::vector<int32_t>& candidates,
                            TierCounts& tiers);

  // The row in float32, in place `slot` of narrow_ if it has to be copied; null if it does not fit.
  const float* as_float32(const T* row, int slot);
  bool decide_by_integers(const T* row, const std::vector<int32_t>& candidates, int32_t& winner);

  const Codebook& book_;
  ExactNearest exact_;
  std::vector<double> scratch_[2];
  std::vector<int32_t> all_;
  std::vector<float> distance_, narrow_;
  std::vector<double> lower_;
};

}  // namespace clustermim
