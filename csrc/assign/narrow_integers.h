// The nearest centroid of narrow rows by integers: rows and centroids rounded to 16 bits, their
// products added without any rounding.
//
// A vector holds one value of as many rows as it has lanes, a centroid's scores are one vector, and
// the two largest scores of a row are kept as they come: nothing is reduced across lanes.
// docs/certificate.md derives the bounds. Plain pointers and no standard headers, as in filter.h.
#pragma once

#include <cstdint>

namespace clustermim {

constexpr int64_t kIntegerValues = 128;    // of a row, at most
constexpr int64_t kIntegerColumns = 4096;  // at most
// With rows X and centroids C of at most these norms, a score X.C - |C|^2 / 2 + kScoreZero is
// between 2^23 and 2^31 - 2^23: a positive float32 number when its bits are read as one, so that
// floating-point maxima, which all instruction sets have, compare scores.
constexpr float kMostRowNorm = 32000.0f;
constexpr float kMostCentroidNorm = 24000.0f;
constexpr int32_t kScoreZero = 1 << 30;

struct IntegerBook {
  int64_t dim = 0, pairs = 0;  // pairs of values, the last one maybe of one value
  int64_t blocks = 0, block_columns = 0;
  const int32_t* panels = nullptr;  // [blocks][pairs][block_columns] two 16-bit values each
  const int32_t* start = nullptr;   // [columns] kScoreZero - |C|^2 / 2; padding: 0
  const int32_t* column = nullptr;  // [columns] its number; padding: 0
  const float* centre = nullptr;    // [dim]
  float scale = 1.0f;               // X = round((x - centre) * scale)
  int32_t marks = 0;                // the bits of a score that its column's number takes
  float slack = 0.0f;               // rho + r: what rounding moved a row and any centroid
  float margin = 1.0f;              // factor of margins: more than 1, or 0 when they do not count
};

// Rows that are left open; each array has room for all rows.
struct IntegerOpen {
  int32_t* row;  // several candidates: the columns with a score >= threshold
  int32_t* threshold;
  int64_t rows;
  int32_t* beyond;  // out of range, or not finite
  int64_t beyonds;
};

struct IntegerKernel {
  // The first of the two values in pair `pair`, whose order is that of the instructions.
  int64_t (*first_value)(int64_t dim, int64_t pair);
  int most_columns, fewer;  // of a block: most_columns less a multiple of `fewer`, at least 2
  int rows;                 // most rows of one call of `candidates`
  // entries [count], the columns of the largest scores; those of rows left open are meaningless.
  void (*assign)(const IntegerBook& book, const float* rows, int64_t stride, int64_t count,
                 int32_t* entries, IntegerOpen* open);
  // The columns of row rows + which[i] * stride with a score >= threshold[i]: columns[i * capacity]
  // and on, counts[i] of them; more than `capacity` are counted and not kept.
  void (*candidates)(const IntegerBook& book, const float* rows, int64_t stride,
                     const int32_t* which, const int32_t* threshold, int64_t count,
                     int32_t* columns, int32_t* counts, int64_t capacity);
};

#if defined(__x86_64__)
extern const IntegerKernel kIntegersGeneric;
extern const IntegerKernel kIntegersAvx2;
extern const IntegerKernel kIntegersAvx512;
extern const IntegerKernel kIntegersVnni;
#endif

}  // namespace clustermim
