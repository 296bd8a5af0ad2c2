// The sum of the rows' costs, in a fixed order or in integers.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "assign/metric.h"
#include "lloyd_step/accumulate.h"

namespace clustermim {

struct Cost {
  Metric metric;
  int kind;

  // Plain squared distances need not be known row by row.
  bool is_summed_by_kernel() const { return metric == Metric::euclidean && kind == kPlain; }
};

class Inertia {
 public:
  void add_squares(const double (&squares)[kDistanceSums * kDistanceLanes]) {
    double sum = 0.0;
    for (double lane : squares) sum += lane;
    plain_ += sum;
  }

  // `values`: squared distances, cosines or dot products of rows with `ids`.
  void add_values(const Cost& cost, const int64_t* ids, const double* weights, const double* values,
                  int64_t count) {
    double sum = 0.0;
    for (int64_t r = 0; r < count; ++r) {
      if (ids[r] < 0) continue;
      const double value = cost.metric == Metric::euclidean ? values[r]
                           : cost.metric == Metric::cosine  ? 1.0 - values[r]
                                                            : -values[r];
      sum += weights ? weights[r] * value : value;
      if (cost.kind == kQuantised) add_quanta(value);
    }
    plain_ += sum;
  }

  void add(const Inertia& other) {
    plain_ += other.plain_;
    quanta_ += other.quanta_;
    is_huge_ = is_huge_ || other.is_huge_;
  }

  double value(int kind) const {
    return kind == kQuantised && !is_huge_ ? static_cast<double>(quanta_) * kQuantum : plain_;
  }

 private:
  void add_quanta(double value) {
    if (std::abs(value) < 0x1p22) {  // rounded to a multiple of kQuantum by the addition
      quanta_ +=
          static_cast<int64_t>(std::bit_cast<uint64_t>(value + kQuantisedOffset) - kQuantisedZero);
    } else if (std::abs(value) < 0x1p60) {
      quanta_ += static_cast<__int128>(std::nearbyint(value / kQuantum));
    } else {
      is_huge_ = true;
    }
  }

  double plain_ = 0.0;
  __int128 quanta_ = 0;
  bool is_huge_ = false;  // a cost that quanta_ does not hold: plain_ is taken
};

}  // namespace clustermim
