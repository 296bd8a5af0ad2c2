// The nearest centroid of narrow rows: one pass that decides most rows, one that lists candidates.
//
// For rows of a few dozen values the filter's product is cheap, and what surrounds it counts.
// Here sixteen rows lie side by side in the lanes of a vector from packing to the answer: a
// centroid is one vector of sixteen scores, maxima are kept as the scores come, and nothing is
// reduced across lanes. docs/certificate.md derives the errors.
//
// Plain pointers and no standard headers, as in filter.h.
#pragma once

#include <cstdint>

#include "assign/certificate.h"
#include "assign/filter.h"

namespace clustermim {

constexpr int64_t kNarrowAhead = 96;  // rows asked for in advance

// Centroids for this path: euclidean, in tiles of 16 columns in the order of their residuals, so
// that a tile's largest one is close to each of its columns'; and the bias as part of the dot
// product, split into three values that the format holds exactly, against three ones behind each
// row's values.
struct NarrowBook {
  int64_t dim = 0;
  int64_t tiles = 0;
  const void* panels = nullptr;  // as the kernel's pack_column writes them
  const float* shift = nullptr;  // [dim] -centre * scale
  float scale = 1.0f;
  const int32_t* entry_of = nullptr;     // [columns]
  const float* tile_residual = nullptr;  // [tiles] at least |c' - cr| of its columns, ascending
  SegmentBounds bounds;
  ScoreError error;
  float margin = 1.0f;  // factor of margins: more than 1, or 0 when they do not count
};

// Rows that the first pass leaves open; each array has room for all rows and 16 more.
struct NarrowOpen {
  // Row few_row[i] has its candidates in at most two tiles (a bit each, 32 in a word) and at most
  // two places of tiles.
  int32_t* few_row;
  int32_t* few_tiles[2];
  int32_t* few_places;
  int64_t few;
  // More of them, or a row beyond the filter's range: then the threshold is NaN.
  int32_t* row;
  float* threshold;
  RowBounds* bounds;
  int64_t rows;
};

struct NarrowKernel {
  int64_t (*tile_bytes)(int64_t dim);
  // Column `from` of a tile of the filter, and its bias, to column `to` of a tile of zeros.
  void (*pack_column)(const void* filter_tile, int64_t from, float bias, int64_t dim, void* tile,
                      int64_t to);
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
