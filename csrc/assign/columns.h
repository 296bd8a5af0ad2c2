// The filter's view of a codebook: which entry each packed column is, in segments with bounds.
#pragma once

#include <cstdint>
#include <vector>

#include "assign/certificate.h"
#include "core/aligned_vector.h"

namespace clustermim {

// Columns of similar norm, so that one far centroid does not loosen the bounds of the others.
struct Segment {
  int64_t first_tile, tiles;
};

struct Columns {
  Metric metric = Metric::euclidean;
  int tile = 16;  // columns of a tile
  std::vector<Segment> segments;
  std::vector<SegmentBounds> bounds;  // [segments]
  ScoreError error;
  std::vector<int32_t> entry_of;  // [columns], -1 for padding
  // [columns] upper bounds, as in SegmentBounds; outside is empty without a projection
  std::vector<float> residual, outside;
  AlignedVector<float> bias;         // [columns]; padding is far below any score
  std::vector<int32_t> far_entries;  // beyond the filter's range: candidates of every row

  int64_t size() const { return static_cast<int64_t>(entry_of.size()); }
};

// Median norms, times the scale, are at least this: then (6) covers underflow.
constexpr double kSmallestMedian = 0x1p-14;
constexpr float kNeverWins = -0x1p126f;  // below any score: |xr| < 2^60 (Assigner), |cr| < 2^41

// Gives every entry whose norm (times the scale returned) is within range a column: `filter_norms`
// [entries], NaN or infinite for an entry that must stay out. Fills tile, segments, entry_of and
// far_entries, sizes the rest, and returns the power of two that brings a usual norm near one.
double choose_columns(const std::vector<double>& filter_norms, int tile, Columns& columns);

// Columns for all entries again, those whose `looseness` (of their bounds) is alike together.
void regroup_columns(const std::vector<double>& looseness, Columns& columns);

// bounds (but for `constant`) from residual, outside, lengths [columns] (upper bounds on |cr|) and
// bias.
void bound_segments(const std::vector<float>& lengths, Columns& columns);

}  // namespace clustermim
