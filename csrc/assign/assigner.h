// Blocks of rows to centroid ids: filter, then float32, float64 and exact arithmetic, each for the
// rows that the tier below leaves open.
#pragma once

#include <cstdint>
#include <vector>

#include "assign/codebook.h"
#include "assign/decide.h"
#include "assign/metric.h"
#include "assign/row_source.h"
#include "assign/sweep.h"
#include "core/status.h"

namespace clustermim {

// One worker's scratch and counters. Ids do not depend on how rows are cut into blocks.
template <typename T>
class Assigner {
 public:
  explicit Assigner(const Codebook& codebook);

  // ids [count]; `value` [count] (metric_value of row and winner, NaN without one) may be null.
  // count <= block_rows(codebook).
  void assign(const T* rows, int64_t stride, int64_t count, int64_t* ids, double* value);

  TierCounts tiers;
  int64_t rescored = 0;  // candidates that the filter left, of rows with more than one

 private:
  void load(const T* rows, int64_t stride, int64_t first, int64_t count);
  void project(int64_t first, int64_t count);
  void filter(const T* rows, int64_t stride, int64_t count);
  void assign_narrow(const T* rows, int64_t stride, int64_t count);
  void assign_integers(const T* rows, int64_t stride, int64_t count);
  void assign_filtered(const T* rows, int64_t stride, int64_t first, int64_t count);
  int32_t decide_open(const T* row, int64_t r, std::vector<int32_t>* candidates);
  int32_t nearest(const T* row, int64_t block_row);
  int32_t nearest_of_all(const T* row);
  bool few(const std::vector<int32_t>& candidates) const;
  void decide_ties(const T* rows, int64_t stride);

  const Codebook& book_;
  int64_t row_bytes_;
  Sweep sweep_;
  NarrowSearch narrow_;
  IntegerSearch integers_;
  Decider<T> decider_;
  AlignedVector<char> packed_;     // rows as the filter reads them
  AlignedVector<char> projected_;  // ... or their coordinates
  AlignedVector<float> coordinates_;
  std::vector<float> single_;  // float64 rows in float32, on their way there
  std::vector<float> zeros_, norm2_, error2_;
  std::vector<char> filterable_;
  std::vector<int32_t> candidates_, entries_;
  std::vector<int64_t> ties_;  // rows with so many candidates that they are decided together
};

// Rows of one block: small enough that the packed block stays in the second-level cache beside a
// chunk of centroids, and enough rows to pay for streaming all centroids past them.
int64_t block_rows(const Codebook& codebook);

// A codebook for these rows: with a projection only if a sample of them says that it pays.
template <typename T>
Status prepare_codebook(const RowSource<T>& source, const MatrixView& centroids, Metric metric,
                        int threads, bool keep_values, Codebook& codebook);

// Ids (and values, may be null) of every row of `source`.
template <typename T>
Status assign_rows(const RowSource<T>& source, const Codebook& codebook, int threads, int64_t* ids,
                   double* value, TierCounts* tiers);

}  // namespace clustermim
