#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace clustermim {

enum class Metric : int { euclidean = 0, cosine = 1, dot = 2 };

// A row-major matrix given by the caller; the stride is in elements, the last dimension dense.
struct MatrixView {
  const void* data = nullptr;
  DType dtype = DType::f32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_stride = 0;
};

// Rows by the precision that decided them; the rest were decided by the filter.
struct TierCounts {
  int64_t float32 = 0;
  int64_t float64 = 0;
  int64_t exact = 0;
  int64_t invalid = 0;

  void add(const TierCounts& other) {
    float32 += other.float32;
    float64 += other.float64;
    exact += other.exact;
    invalid += other.invalid;
  }
};

}  // namespace clustermim
