// Which columns the filter's scores cannot exclude: docs/certificate.md, equation by equation.
#pragma once

#include <cstdint>

#include "assign/filter.h"
#include "assign/metric.h"

namespace clustermim {

// Bounds that hold for all columns of one segment.
struct SegmentBounds {
  float residual = 0.0f;  // |c' - cr|
  float norm = 0.0f;      // |cr|
  float bias = 0.0f;      // |bias|
  float outside = 0.0f;   // with a projection: |c'| outside of the subspace
  float constant = 0.0f;  // ... and the error of the bias beyond rounding
};

// |computed T - exact T| <= dot |xr| |cr| + bias |bias|: equation (6). `dot` counts the rounding of
// x' itself as well.
struct ScoreError {
  float dot = 0.0f, bias = 0.0f;
};
ScoreError score_error(Format format, int64_t dim);

// false: every margin is zero and ids are those of the rounded scores. For measuring what the
// certificate costs; never otherwise.
void set_certified(bool certified);
bool certified();

// What a float32 sum of `dim` squares can lose to underflow, 2^-150 each. In float64, since a value
// that is subnormal in float32 takes the processor a hundred cycles.
inline double lost_squares(int64_t dim) {
  return static_cast<double>(dim) * 0x1p-150;
}

// Upper bounds on a row's rounding, from the float32 sums that the filter measured.
struct RowBounds {
  float norm;            // |xr|
  float residual;        // |x' - xr| but for the rounding of x', which is in ScoreError::dot
  float outside = 0.0f;  // with a projection: |x'| outside of the subspace
};
RowBounds row_bounds(float norm2, float error2, int64_t dim);

// The same for a row's coordinates y in a subspace: `x` bounds the row itself, `relative` times
// |xr| bounds the error of y before it was rounded.
RowBounds projected_bounds(const RowBounds& x, float y_norm2, float y_error2, int64_t size,
                           float relative);

// For `count` rows whose best score so far is best[r], found in the segment with bounds[owner[r]]:
// threshold[r] below which a column of the segment `bounds[segment]` cannot be the nearest.
void thresholds(Metric metric, const ScoreError& error, const SegmentBounds* bounds,
                int32_t segment, const RowBounds* rows, const float* best, const int32_t* owner,
                int64_t count, float* threshold);

}  // namespace clustermim
