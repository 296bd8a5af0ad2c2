// Centroids made ready for one call: finite, without duplicates, centred, scaled and packed.
#pragma once

#include <cstdint>
#include <vector>

#include "assign/columns.h"
#include "assign/filter.h"
#include "assign/filter_sizes.h"
#include "assign/metric.h"
#include "assign/narrow_integer_search.h"
#include "assign/narrow_search.h"
#include "assign/projection.h"
#include "core/aligned_vector.h"
#include "core/status.h"

namespace clustermim {

class Codebook {
 public:
  // Reads `centroids` [K, D]; K >= 1, and keeps the view. Allocates O(K * D), freed with the
  // object. keep_values: fill `values` whatever the dtype. num_rows: how many rows will be asked
  // for; with enough of them more preparation pays.
  Status prepare(const MatrixView& centroids, Metric metric, int threads, bool keep_values = true,
                 int64_t num_rows = 0);

  int64_t dim = 0;
  int64_t num_rows = 0;     // 0: not known
  bool may_project = true;  // set before `prepare`
  Metric metric = Metric::euclidean;

  // Entries that can win, ascending by id: finite, the lowest id of each set of equal centroids.
  std::vector<int64_t> ids;
  std::vector<double> norms;   // [entries] |c|, 0 exactly for a zero vector; cosine only
  std::vector<double> values;  // [entries, D], exactly as given; for float64, or when asked for

  // The filter's view: scores T = xr.cr + bias of rounded x' = (x - centre) * scale. There are no
  // columns (and no centre) for a few rows: every entry is a candidate then.
  const FilterKernel* kernel = nullptr;
  std::vector<float> centre;  // [D], zero unless euclidean
  float scale = 1.0f;         // a power of two, of centroids and (euclidean) of rows
  Projection projection;      // of size 0: scores are products of whole rows
  Columns columns;
  AlignedVector<char> panels;  // [tiles, packed_tile_bytes(*kernel, filter_dim())]
  NarrowPanels narrow;         // the same for narrow rows, when that path is the faster one
  IntegerPanels integers;      // ... or as integers

  int64_t entries() const { return static_cast<int64_t>(ids.size()); }
  const double* value(int64_t entry) const { return values.data() + entry * dim; }
  // The same without `values`: `scratch` [dim] is written when they were not kept.
  const double* value(int64_t entry, double* scratch) const;
  // Whether float32 holds the centroids; entry `entry` in float32, rounded where it does not.
  bool exact_float32() const { return exact_float32_; }
  const float* row32(int64_t entry) const { return rows32_ + ids[entry] * stride32_; }

  float row_scale() const { return metric == Metric::euclidean ? scale : 1.0f; }
  int64_t filter_dim() const { return projection.size ? projection.size : dim; }
  const char* panel(int64_t tile) const {
    return panels.data() + tile * packed_tile_bytes(*kernel, filter_dim());
  }

 private:
  Status read(const MatrixView& centroids, int threads, bool keep_values);
  void choose_entries();
  void choose_centre();
  double filter_norm(int64_t entry) const;
  Status project(int threads);
  Status pack(int threads);
  void pack_column(int64_t column, char* packed, std::vector<float>& lengths);
  void pack_coordinates(int64_t column, char* packed, std::vector<float>& lengths,
                        std::vector<float>& constants);

  const float* rows32_ = nullptr;  // the caller's matrix, or copied_
  int64_t stride32_ = 0;
  bool exact_float32_ = false;
  AlignedVector<float> copied_;
  std::vector<char> finite_;
  std::vector<float> keys_;
  std::vector<float> coordinates_;  // [entries, projection.size]
  std::vector<double> outside2_;    // [entries] |c'|^2 outside of the subspace
  float coordinate_error_ = 0.0f;   // of coordinates_, relative to |c'|
};

}  // namespace clustermim
