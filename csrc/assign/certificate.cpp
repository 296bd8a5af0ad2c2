#include "assign/certificate.h"

#include <algorithm>
#include <atomic>
#include <cmath>

namespace clustermim {
namespace {

constexpr float kUnit = 0x1p-24f;
// Rounds lengths and margins up: the formulas below are evaluated in float32 themselves, a few
// roundings each, and a measured length is the root of a float32 sum, off by 28 units at most.
constexpr float kMore = 1.0f + 0x1p-18f;

std::atomic<bool> margins_count{true};

}  // namespace

void set_certified(bool certified) {
  margins_count.store(certified, std::memory_order_relaxed);
}

bool certified() {
  return margins_count.load(std::memory_order_relaxed);
}

// Equation (6) and its table.
ScoreError score_error(Format format, int64_t dim) {
  const float d = static_cast<float>(dim);
  ScoreError e;
  if (format == Format::bfloat16) {
    // The row's value; in a step of 32 values a chain of 16 fused multiply-adds of which the first
    // is exact, and the sum of two chains; and one addition to the accumulator, which starts as the
    // bias, in this step and in each later one.
    const float steps = std::ceil(d / 32.0f);
    e.dot = 1.01f * kUnit * (1.0f + 15.0f + 1.0f + steps);
    e.bias = 1.01f * kUnit * (steps + 1.0f);
  } else {
    const float chain = static_cast<float>(std::min(dim, kChain));
    const float runs = std::ceil(d / static_cast<float>(kChain));
    // The row's value; a run, the later runs' sums, and the bias.
    e.dot = 1.01f * kUnit * (1.0f + chain + runs);
    e.bias = 1.01f * kUnit * 2.0f;
  }
  return e;
}

// Equation (1).
RowBounds row_bounds(float norm2, float error2, int64_t dim) {
  const double lost = lost_squares(dim);
  const auto root = [&](float squares) {
    return kMore * static_cast<float>(std::sqrt(static_cast<double>(squares) + lost));
  };
  RowBounds row;
  row.norm = root(norm2);
  row.residual = root(error2);
  return row;
}

// Section 3: rho and |w| of a row's coordinates.
RowBounds projected_bounds(const RowBounds& x, float y_norm2, float y_error2, int64_t size,
                           float relative) {
  RowBounds row = row_bounds(y_norm2, y_error2, size);
  const float rounded = row.residual, computed = kMore * relative * x.norm;
  row.residual = kMore * (x.residual + rounded + computed);
  // |P xr| is at least |yr| less what separates the two; Pythagoras gives the rest of xr.
  const float inside = std::max(0.0f, row.norm * (1.0f - 0x1p-16f) - kMore * (rounded + computed));
  const float rest2 = x.norm * x.norm * (1.0f + 0x1p-21f) - inside * inside * (1.0f - 0x1p-21f);
  row.outside = kMore * (std::sqrt(std::max(0.0f, rest2)) + x.residual);
  return row;
}

// Equations (9), which is (4) without a subspace, and (5).
void thresholds(Metric metric, const ScoreError& error, const SegmentBounds* bounds,
                int32_t segment, const RowBounds* rows, const float* best, const int32_t* owner,
                int64_t count, float* threshold) {
  const SegmentBounds s = bounds[segment];
  const float counts = certified() ? 1.0f : 0.0f;
  for (int64_t r = 0; r < count; ++r) {
    const SegmentBounds b = bounds[owner[r]];
    const RowBounds row = rows[r];
    const float scores =
        1.01f * (error.dot * row.norm * (s.norm + b.norm) + error.bias * (s.bias + b.bias)) +
        s.constant + b.constant;
    float margin;
    if (metric == Metric::euclidean) {
      // Distances of rounded points: the triangle inequality inside the subspace (the whole space
      // without a projection), Cauchy-Schwarz outside of it.
      const float distance2 = std::max(0.0f, row.norm * row.norm - 2.0f * best[r] + 2.0f * scores);
      const float slack_b = b.residual + row.residual, slack_s = s.residual + row.residual;
      const float extra = slack_b * (2.0f * std::sqrt(distance2) + slack_b) +
                          2.0f * row.outside * (b.outside + s.outside);
      const float reach = std::sqrt(distance2 + extra);
      margin = scores + 0.5f * extra + slack_s * (reach + 0.5f * slack_s);
    } else {
      // Cauchy-Schwarz: x'.c' - xr.cr = xr.(c' - cr) + (x' - xr).c'.
      margin = scores + row.norm * (s.residual + b.residual) +
               row.residual * (s.norm + s.residual + b.norm + b.residual);
    }
    // Rounded once more, monotonously: a score that is at least the difference stays so.
    threshold[r] = best[r] - counts * (kMore * margin);
  }
}

}  // namespace clustermim
