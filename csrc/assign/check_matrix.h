#pragma once

#include "assign/metric.h"
#include "core/status.h"

namespace clustermim {

inline Status check_matrix(const char* op, const char* argument, const MatrixView& m) {
  if (m.rows < 0 || m.cols < 0) {
    return Status::error(StatusCode::invalid_argument, "%s: %s has a negative size", op, argument);
  }
  return check_pointer(op, argument, m.data, m.rows * m.cols > 0);
}

inline Status check_centroids(const char* op, const MatrixView& centroids, int64_t dim) {
  CMIM_RETURN_IF_ERROR(check_matrix(op, "centroids", centroids));
  if (centroids.rows < 1 || centroids.rows >= (int64_t{1} << 31)) {
    return Status::error(StatusCode::invalid_argument,
                         "%s: centroids must have 1 <= K < 2^31, got %lld", op,
                         static_cast<long long>(centroids.rows));
  }
  if (centroids.cols != dim) {
    return Status::error(StatusCode::invalid_argument, "%s: centroids must have D = %lld, got %lld",
                         op, static_cast<long long>(dim), static_cast<long long>(centroids.cols));
  }
  return Status();
}

}  // namespace clustermim
