#include "assign/columns.h"

#include <algorithm>
#include <cmath>

namespace clustermim {
namespace {

constexpr double kLargestNorm = 0x1p40;  // relative to the scale
constexpr double kBaseSpread = 8.0;      // norms up to 8 times the median share a segment

void set_segments(const std::vector<std::vector<int32_t>>& classes, Columns& columns) {
  columns.segments.clear();
  columns.entry_of.clear();
  const int64_t tile = columns.tile;
  for (const auto& members : classes) {
    if (members.empty()) continue;
    const int64_t tiles = (static_cast<int64_t>(members.size()) + tile - 1) / tile;
    columns.segments.push_back({columns.size() / tile, tiles});
    columns.entry_of.insert(columns.entry_of.end(), members.begin(), members.end());
    columns.entry_of.resize((columns.segments.back().first_tile + tiles) * tile, -1);
  }
  columns.bounds.assign(columns.segments.size(), SegmentBounds());
  columns.residual.assign(columns.size(), 0.0f);
  columns.bias.assign(columns.size(), kNeverWins);
}

}  // namespace

double choose_columns(const std::vector<double>& filter_norms, int tile, Columns& columns) {
  std::vector<double> sorted;
  for (double n : filter_norms) {
    if (n > 0.0 && std::isfinite(n)) sorted.push_back(n);
  }
  double median = 1.0;
  if (!sorted.empty()) {
    std::nth_element(sorted.begin(), sorted.begin() + sorted.size() / 2, sorted.end());
    median = sorted[sorted.size() / 2];
  }
  int exponent = 0;
  std::frexp(median, &exponent);
  const double scale = std::ldexp(1.0, -std::clamp(exponent, -120, 120));
  const bool too_small = median * scale < kSmallestMedian;

  // Class 0: up to kBaseSpread medians; each further one a factor of 16.
  std::vector<std::vector<int32_t>> classes(1);
  for (size_t e = 0; e < filter_norms.size(); ++e) {
    const double n = filter_norms[e];
    if (too_small || !(n * scale < kLargestNorm)) {
      columns.far_entries.push_back(static_cast<int32_t>(e));
      continue;
    }
    size_t which = 0;
    if (n > kBaseSpread * median) {
      std::frexp(n / median, &exponent);
      which = static_cast<size_t>(exponent / 4);
    }
    if (classes.size() <= which) classes.resize(which + 1);
    classes[which].push_back(static_cast<int32_t>(e));
  }
  columns.tile = tile;
  set_segments(classes, columns);
  return scale;
}

void regroup_columns(const std::vector<double>& looseness, Columns& columns) {
  std::vector<double> sorted = looseness;
  std::nth_element(sorted.begin(), sorted.begin() + sorted.size() / 2, sorted.end());
  const double median = sorted[sorted.size() / 2];
  constexpr double kLimits[] = {1.25, 1.75, 3.0};
  std::vector<std::vector<int32_t>> classes(4);
  for (size_t e = 0; e < looseness.size(); ++e) {
    size_t which = 0;
    while (which < 3 && looseness[e] > kLimits[which] * median) ++which;
    classes[which].push_back(static_cast<int32_t>(e));
  }
  set_segments(classes, columns);
}

void bound_segments(const std::vector<float>& lengths, Columns& columns) {
  for (size_t s = 0; s < columns.segments.size(); ++s) {
    SegmentBounds& b = columns.bounds[s];
    const int64_t begin = columns.segments[s].first_tile * columns.tile;
    const int64_t end = begin + columns.segments[s].tiles * columns.tile;
    for (int64_t k = begin; k < end; ++k) {
      if (columns.entry_of[k] < 0) continue;
      b.residual = std::max(b.residual, columns.residual[k]);
      b.norm = std::max(b.norm, lengths[k]);
      if (!columns.outside.empty()) b.outside = std::max(b.outside, columns.outside[k]);
      b.bias = std::max(b.bias, std::abs(columns.bias[k]));
    }
  }
}

}  // namespace clustermim
