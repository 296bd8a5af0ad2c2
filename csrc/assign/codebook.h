// Centroids made ready for one call: finite, without duplicates, centred, scaled and packed.
#pragma once

#include <cstdint>
#include <vector>

#include "assign/filter.h"
#include "assign/metric.h"
#include "core/status.h"

namespace clustermim {

class Codebook {
 public:
  // Reads `centroids` [K, D]; K >= 1. Allocates O(K * D), freed with the object.
  Status prepare(const MatrixView& centroids, Metric metric, int threads);

  int64_t dim = 0;
  Metric metric = Metric::euclidean;

  // Entries that can win, ascending by id: finite, the lowest id of each set of equal centroids.
  std::vector<int64_t> ids;
  std::vector<double> values;  // [entries, D], exactly as given
  std::vector<double> norms;   // [entries] |c|; 0 exactly for a zero vector

  // The filter's view: scores t = x'.c' - bias with x' = (x - centre) * scale.
  const FilterKernel* kernel = nullptr;
  std::vector<float> centre;  // [D], zero unless euclidean
  float scale = 1.0f;         // a power of two, of centroids and (euclidean) of rows
  bool filter_usable = true;  // false: magnitudes that float32 cannot hold, every row is re-scored
  std::vector<float> panels;  // [num_panels, D, kernel->columns]
  std::vector<float> bias;    // [num_panels * columns]; huge for padding, so that it never wins
  std::vector<float> filter_norms;  // [entries] upper bounds on |c'|
  int64_t num_panels = 0;
  double max_filter_norm = 0.0, max_bias = 0.0;

  int64_t entries() const { return static_cast<int64_t>(ids.size()); }
  const double* value(int64_t entry) const { return values.data() + entry * dim; }
  float row_scale() const { return metric == Metric::euclidean ? scale : 1.0f; }

  // Bound on |computed - true| of a filter score. With u = 2^-24: a dot product of D terms summed
  // in runs of kChain costs (min(D, kChain) + ceil(D / kChain)) u |x'||c'|; 6 u more cover the
  // rounding of x', of c' and of the final subtraction; the bias is rounded once and subtracted
  // once; the last term covers underflow anywhere. 1.01 covers second-order terms and this
  // function's own rounding.
  double filter_error(double x_norm, double c_norm, double abs_bias) const;
  // The same for the worst entry: linear in x_norm.
  double largest_filter_error(double x_norm) const { return error_slope_ * x_norm + error_base_; }

 private:
  double error_slope_ = 0.0, error_base_ = 0.0;
  void choose_entries(const std::vector<double>& all, int64_t num_centroids);
  void choose_centre();
  Status pack(int threads);
};

}  // namespace clustermim
