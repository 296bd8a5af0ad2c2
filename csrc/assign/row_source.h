// Where rows come from: a matrix in memory, or images read patch by patch.
#pragma once

#include <cstdint>

#include "assign/metric.h"

namespace clustermim {

// T is float or double and holds every row value exactly.
template <typename T>
class RowSource {
 public:
  virtual ~RowSource() = default;
  virtual int64_t num_rows() const = 0;
  // Rows [begin, begin + count): a pointer to the first and the stride between them. Rows that are
  // not in memory as T are written to `scratch` [count, dim]. Callable from several threads.
  virtual const T* rows(int64_t begin, int64_t count, T* scratch, int64_t* stride) const = 0;
};

// Rows of `E` elements as T: read in place when E is T.
template <typename T, typename E>
class MatrixRows final : public RowSource<T> {
 public:
  explicit MatrixRows(const MatrixView& view) : view_(view) {}
  int64_t num_rows() const override { return view_.rows; }
  const T* rows(int64_t begin, int64_t count, T* scratch, int64_t* stride) const override {
    const E* first = static_cast<const E*>(view_.data) + begin * view_.row_stride;
    if constexpr (__is_same(T, E)) {
      *stride = view_.row_stride;
      return first;
    } else {
      for (int64_t r = 0; r < count; ++r) {
        const E* row = first + r * view_.row_stride;
        for (int64_t d = 0; d < view_.cols; ++d) scratch[r * view_.cols + d] = to_float(row[d]);
      }
      *stride = view_.cols;
      return scratch;
    }
  }

 private:
  MatrixView view_;
};

// Calls visitor(source) with the row source of a floating matrix; false for an unknown dtype.
template <typename Visitor>
bool visit_matrix_rows(const MatrixView& x, Visitor&& visitor) {
  switch (x.dtype) {
    case DType::f32: visitor(MatrixRows<float, float>(x)); return true;
    case DType::f64: visitor(MatrixRows<double, double>(x)); return true;
    case DType::f16: visitor(MatrixRows<float, Half>(x)); return true;
    case DType::bf16: visitor(MatrixRows<float, BFloat16>(x)); return true;
    case DType::u8: return false;
  }
  return false;
}

}  // namespace clustermim
