#include "assign/certificate.h"

#include <algorithm>
#include <cmath>

namespace clustermim {
namespace {

constexpr float kUnit = 0x1p-24f;
// The formulas below are evaluated in float32 themselves: a few roundings each, covered by these.
constexpr float kMore = 1.0f + 0x1p-18f;

}  // namespace

ScoreError score_error(Format format, int64_t dim) {
  const float d = static_cast<float>(dim);
  ScoreError e;
  if (format == Format::bfloat16) {
    // A step of 32 values: two chains of 16 fused multiply-adds, their sum, and one addition to the
    // accumulator, which starts as the bias.
    const float steps = std::ceil(d / 32.0f);
    e.dot = 1.01f * kUnit * (17.0f + steps);
    e.bias = 1.01f * kUnit * (steps + 1.0f);
  } else {
    const float chain = static_cast<float>(std::min(dim, kChain));
    const float runs = std::ceil(d / static_cast<float>(kChain));
    e.dot = 1.01f * kUnit * (chain + runs + 2.0f);
    e.bias = 1.01f * kUnit * 2.0f;
  }
  e.underflow = (4.0f * d + 128.0f) * 0x1p-126f;
  return e;
}

RowBounds row_bounds(float norm2, float error2, int64_t dim) {
  const float d = static_cast<float>(dim);
  // At least 16 chains of squares, then at most 40 more additions.
  const float sum = 1.0f + 1.01f * kUnit * (d / 16.0f + 44.0f), lost = d * 0x1p-124f;
  RowBounds row;
  row.norm = kMore * std::sqrt(norm2 * sum + lost);
  const float rounded = kMore * std::sqrt(error2 * sum + lost);
  row.residual = kMore * (rounded + 1.01f * kUnit * (row.norm + rounded));
  return row;
}

void thresholds(Metric metric, const ScoreError& error, const SegmentBounds* bounds,
                int32_t segment, const RowBounds* rows, const float* best, const int32_t* owner,
                int64_t count, float* threshold) {
  const SegmentBounds s = bounds[segment];
  for (int64_t r = 0; r < count; ++r) {
    const SegmentBounds b = bounds[owner[r]];
    const RowBounds row = rows[r];
    const float scores =
        1.01f * (error.dot * row.norm * (s.norm + b.norm) + error.bias * (s.bias + b.bias)) +
        2.0f * error.underflow;
    float margin;
    if (metric == Metric::euclidean) {
      // Distances of rounded points: the triangle inequality.
      const float slack = s.residual + b.residual + 2.0f * row.residual;
      const float square = row.norm * row.norm, twice = 2.0f * best[r];
      const float distance2 =
          square - twice + 2.0f * scores + 0x1p-21f * (square + std::abs(twice));
      const float distance = std::sqrt(std::max(distance2, 0.0f));
      margin = scores + slack * (distance + 0.5f * slack);
    } else {
      // Cauchy-Schwarz: x'.c' - xr.cr = xr.(c' - cr) + (x' - xr).c'.
      margin = scores + row.norm * (s.residual + b.residual) +
               row.residual * (s.norm + s.residual + b.norm + b.residual);
    }
    threshold[r] = best[r] - kMore * margin - 0x1p-22f * std::abs(best[r]);
  }
}

}  // namespace clustermim
