// The nearest centroid of narrow rows: one pass that decides most rows, one that lists candidates.
//
// For rows of a few dozen values the filter's product is cheap, and what surrounds it counts.
// Here sixteen rows lie side by side in the lanes of a vector from packing to the answer: a
// centroid is one vector of sixteen scores, the largest and second largest score are kept as the
// scores come, and nothing is reduced across lanes. docs/certificate.md derives the errors.
//
// Plain pointers and no standard headers, as in filter.h.
#pragma once

#include <cstdint>

#include "assign/certificate.h"
#include "assign/filter.h"

namespace clustermim {

// Centroids for this path: one segment, euclidean, and the bias as part of the dot product, split
// into three values that the format holds exactly, against three ones behind each row's values.
struct NarrowBook {
  int64_t dim = 0;
  int64_t tiles = 0;             // of 16 columns
  const void* panels = nullptr;  // as the kernel's pack_tile writes them
  const float* shift = nullptr;  // [dim] -centre * scale
  float scale = 1.0f;
  const int32_t* entry_of = nullptr;  // [columns]
  const float* residual = nullptr;    // [columns] |c' - cr|
  SegmentBounds bounds;
  ScoreError error;
  float margin = 1.0f;  // factor of margins: more than 1, or 0 when they do not count
};

// Rows that the first pass leaves open; each array has room for all rows and 16 more.
struct NarrowOpen {
  // Two candidates: the columns first[i] and second[i] for row pair_row[i].
  int32_t* pair_row;
  int32_t* first;
  int32_t* second;
  int64_t pairs;
  // More of them, or a row beyond the filter's range: then the threshold is NaN.
  int32_t* row;
  float* threshold;
  RowBounds* bounds;
  int64_t rows;
};

struct NarrowKernel {
  int64_t (*tile_bytes)(int64_t dim);
  // One tile from the same tile of the filter and its bias.
  void (*pack_tile)(const void* filter_tile, const float* bias, int64_t dim, void* tile);
  // entries [count]; those of rows that are left open are meaningless.
  void (*assign)(const NarrowBook& book, const float* rows, int64_t stride, int64_t count,
                 int32_t* entries, NarrowOpen* open);
  // The columns of `count` <= 32 rows with a score >= threshold; rows are rows + which[i] * stride.
  void (*candidates)(const NarrowBook& book, const float* rows, int64_t stride,
                     const int32_t* which, const float* threshold, int64_t count, Hits hits);
};

#if defined(__x86_64__)
extern const NarrowKernel kNarrowAmx;
#endif

}  // namespace clustermim
