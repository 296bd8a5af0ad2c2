#include "assign/candidates.h"

#include <algorithm>

namespace clustermim {

bool take_candidates(const Columns& columns, const ScoreError& error, const RowBounds& row,
                     const int32_t* hit_columns, const float* hit_scores, int64_t count,
                     int64_t capacity, std::vector<int32_t>& entries) {
  entries.clear();
  if (count < 1 || count > capacity) return false;
  const int64_t first = std::max_element(hit_scores, hit_scores + count) - hit_scores;
  const auto own_bounds = [&](int32_t column) {
    size_t s = 0;
    while ((columns.segments[s].first_tile + columns.segments[s].tiles) * columns.tile <= column) {
      ++s;
    }
    SegmentBounds b = columns.bounds[s];
    b.residual = columns.residual[column];
    if (!columns.outside.empty()) b.outside = columns.outside[column];
    return b;
  };
  SegmentBounds pair[2] = {own_bounds(hit_columns[first]), {}};
  const int32_t owner = 0;
  for (int64_t i = 0; i < count; ++i) {
    pair[1] = own_bounds(hit_columns[i]);
    float threshold = 0.0f;
    thresholds(columns.metric, error, pair, 1, &row, &hit_scores[first], &owner, 1, &threshold);
    const int32_t entry = columns.entry_of[hit_columns[i]];
    if (hit_scores[i] >= threshold && entry >= 0) entries.push_back(entry);
  }
  entries.insert(entries.end(), columns.far_entries.begin(), columns.far_entries.end());
  std::sort(entries.begin(), entries.end());
  return true;
}

}  // namespace clustermim
