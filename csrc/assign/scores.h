// Float64 scores with rigorous error bounds, and exact comparison: the tiers above the filter.
#pragma once

#include <cstdint>

#include "assign/metric.h"

namespace clustermim {

// Smaller is better; |score - true score| <= bound. An infinite or NaN bound leaves the pair open.
struct Score {
  double score;
  double bound;
};

// |v| without under- or overflow; 0 exactly for a zero vector.
double scaled_norm(const double* v, int64_t dim);

// The float64 cosine needs norms whose squares neither under- nor overflow; 0 (a zero vector) is
// fine.
inline bool norm_is_safe(double norm) {
  return norm == 0.0 || (norm > 1e-140 && norm < 1e140);
}

// T is float or double. `norm` is |c|, used by the cosine only.
template <typename T>
Score float64_score(Metric metric, const T* x, const double* c, double norm, int64_t dim);

// Exactly: is centroid `a` better for row x than centroid `b`? -1 yes, 0 equal, 1 worse.
template <typename T>
int exact_compare(Metric metric, const T* x, const double* a, const double* b, int64_t dim);

// What return_distance reports: squared distance, cosine or dot product, from x and c directly.
template <typename T>
double metric_value(Metric metric, const T* x, const double* c, int64_t dim);

}  // namespace clustermim
