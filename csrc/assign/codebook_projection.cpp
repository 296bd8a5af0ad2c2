// The part of a codebook's preparation that brings centroids into a subspace.
#include <algorithm>
#include <cmath>

#include "assign/codebook.h"
#include "core/parallel_for.h"

namespace clustermim {
namespace {

constexpr int64_t kRowsPerTask = 64;
constexpr double kMostOutside = 0.02;  // of the centroids' squared norms, for a projection to pay

}  // namespace

// Coordinates of all centroids in a subspace, when there is one that holds nearly all of them.
Status Codebook::project(int threads) {
  const int64_t wanted =
      may_project ? Projection::choose_size(kernel->format, dim, entries(), num_rows) : 0;
  const bool alike = columns.segments.size() == 1 && columns.far_entries.empty();
  if (metric != Metric::euclidean || !exact_float32_ || !alike || wanted == 0) return Status();
  std::vector<float> centred(entries() * dim);
  std::vector<double> norms2(entries());
  const int64_t tasks = (entries() + kRowsPerTask - 1) / kRowsPerTask;
  auto centre_rows = [&](int64_t task, int) {
    for (int64_t e = task * kRowsPerTask; e < std::min(entries(), (task + 1) * kRowsPerTask); ++e) {
      float* to = centred.data() + e * dim;
      const float* row = row32(e);
      double sums[4] = {};
      for (int64_t d = 0; d < dim; ++d) {
        to[d] = (row[d] - centre[d]) * scale;
        sums[d % 4] += static_cast<double>(to[d]) * to[d];
      }
      norms2[e] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }
  };
  CMIM_RETURN_IF_ERROR(parallel_for(threads, tasks, centre_rows));
  CMIM_RETURN_IF_ERROR(projection.find(centred, entries(), dim, wanted, *kernel, threads));
  if (projection.size == 0) return Status();
  const int64_t size = projection.size;
  coordinates_.resize(entries() * size);
  CMIM_RETURN_IF_ERROR(multiply_transposed(centred.data(), entries(), projection.basis.data(), size,
                                           dim, threads, coordinates_.data()));
  outside2_.resize(entries());
  double total = 0.0, left = 0.0;
  for (int64_t e = 0; e < entries(); ++e) {
    const double norm2 = norms2[e];
    double inside2 = 0.0;
    for (int64_t i = 0; i < size; ++i) {
      inside2 += static_cast<double>(coordinates_[e * size + i]) * coordinates_[e * size + i];
    }
    outside2_[e] = std::max(0.0, norm2 - inside2);
    total += norm2;
    left += outside2_[e];
  }
  if (left > kMostOutside * total && projection_mode() != ProjectionMode::always) {
    projection = Projection();
    return Status();
  }
  std::vector<double> looseness(entries());
  for (int64_t e = 0; e < entries(); ++e) looseness[e] = std::sqrt(outside2_[e]);
  regroup_columns(looseness, columns);
  coordinate_error_ = projection.error(Format::float32, dim);
  return Status();
}

void Codebook::pack_coordinates(int64_t column, char* packed, std::vector<float>& lengths,
                                std::vector<float>& constants) {
  const int64_t e = columns.entry_of[column], size = projection.size;
  const std::vector<float> zeros(size, 0.0f);
  float norm2 = 0.0f, error2 = 0.0f;
  kernel->pack_rows(coordinates_.data() + e * size, size, 1, zeros.data(), 1.0f, size, packed,
                    packed_row_bytes(*kernel, size), &norm2, &error2);
  const RowBounds rounded = row_bounds(norm2, error2, size);
  // |c'| from its parts; the coordinates' own error moves length between them.
  const double inside2 = kernel->norm2(packed, size);
  const double length = std::sqrt(norm2 + outside2_[e]) * 1.0001 + 1.01 * rounded.residual;
  const double moved = 2.02 * coordinate_error_ * length * length;
  lengths[column] = rounded.norm;
  columns.residual[column] =
      rounded.residual + coordinate_error_ * static_cast<float>(length) * 1.001f;
  columns.outside[column] = static_cast<float>(std::sqrt(outside2_[e] + moved) * 1.0001);
  columns.bias[column] = static_cast<float>(-0.5 * (inside2 + outside2_[e]));
  constants[column] = static_cast<float>(0.5 * moved * 1.0001);
}

}  // namespace clustermim
