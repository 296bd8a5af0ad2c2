// The filter: scores of rows against centroids in a cheap number format, and the columns that its
// rounding bound cannot exclude.
//
// A path rounds rows x' and centroids c' (centred and scaled) to xr and cr, which its format holds
// exactly, and computes T = xr.cr + bias; larger is better. Columns are centroids in packed order,
// padded to whole tiles. Plain pointers and no standard headers below, so that a unit compiled for
// one ISA can share nothing with another. docs/certificate.md derives the errors.
#pragma once

#include <cstdint>

namespace clustermim {

enum class Format : int { float32, bfloat16 };

// Float32 dot products are summed in runs of this many terms, the runs' sums one after the other.
constexpr int64_t kChain = 64;

// Float32 sums of squares that measure lengths: a chain takes this many at most (two more at the
// end of a row), then a run is over; what its chains add up to joins a float64 sum. So the error of
// a length does not grow with the row.
constexpr int64_t kSquares = 32;

// A call of row_max and select has at most this many columns.
constexpr int64_t kMaxScanColumns = 1024;
constexpr int64_t kPeaks = kMaxScanColumns / 8;

// What a row-by-row search of scores appends to: `columns` and `scores` [rows, capacity], `counts`
// [rows]. A count beyond `capacity` says that columns were lost.
struct Hits {
  int32_t* columns;
  float* scores;
  int32_t* counts;
  int64_t capacity;
};

// How rows of scores are searched; the same for all formats of an ISA.
struct ScanKernel {
  // Largest score of each row. peaks [count, kPeaks]: notes for `select`, as the ISA likes them.
  void (*row_max)(const float* scores, int64_t stride, int64_t count, int64_t columns, float* max,
                  float* peaks);
  // For the rows `rows` [count] of these: appends every column with score >= threshold[i]; the
  // first column is called first_column.
  void (*select)(const float* scores, int64_t stride, const float* peaks, const int32_t* rows,
                 int64_t count, int64_t columns, const float* threshold, int32_t first_column,
                 Hits hits);
  // |x - c|^2 in float32, the difference first, in at least 16 chains.
  float (*squared_distance)(const float* x, const float* c, int64_t dim);
  // x.y in float32, and y -= factor * x; null where the float32 paths have them.
  float (*dot)(const float* x, const float* y, int64_t dim);
  void (*subtract)(float factor, const float* x, float* y, int64_t dim);
};

struct FilterKernel {
  Format format;
  int tile;        // columns are padded to a multiple of this
  int strip_rows;  // most rows of one call of `scores`
  int step;        // packed rows and tiles are zero-padded to a multiple of this many values

  // Rows [count, dim] to `packed` (row_bytes apart): xr = round((x - centre) * scale).
  // norm2 = |xr|^2, error2 = |x'32 - xr|^2 where x'32 is the float32 value of the expression, both
  // summed in runs (kSquares).
  void (*pack_rows)(const float* x, int64_t stride, int64_t count, const float* centre, float scale,
                    int64_t dim, void* packed, int64_t row_bytes, float* norm2, float* error2);
  // |xr|^2 of one packed row, in float64.
  double (*norm2)(const void* packed, int64_t dim);
  // One tile of centroids, given as `tile` packed rows.
  void (*pack_tile)(const void* rows, int64_t row_bytes, int64_t dim, void* tile);

  // Around the calls of `scores` for a block of rows, on the thread that makes them.
  void (*enter)();
  void (*leave)();

  // Scores of `count` <= strip_rows rows against `tiles` tiles: out [count, tiles * tile].
  // Rows up to strip_rows must be readable and `out` writable for them. bias: [tiles * tile].
  // `ahead`: memory that is read next, asked for along the way when the kernel leaves room for it.
  void (*scores)(const void* rows, int64_t row_bytes, int64_t count, const void* panels,
                 const float* bias, int64_t tiles, int64_t dim, float* out, int64_t out_stride,
                 const char* ahead, int64_t ahead_bytes);

  ScanKernel scan;
};

extern const FilterKernel kFilterGeneric;
#if defined(__x86_64__)
extern const FilterKernel kFilterAvx2;
extern const FilterKernel kFilterAvx512;
extern const FilterKernel kFilterAmx;
#endif

}  // namespace clustermim
