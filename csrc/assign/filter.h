// The float32 filter: scores of row blocks against packed centroids, the two best kept per row.
//
// Score of row x and centroid c (both already centred and scaled): t = x.c - bias, larger is
// better. Plain pointers and no standard headers below, so that a unit compiled for one ISA can
// share nothing with another.
#pragma once

#include <cstdint>

namespace clustermim {

// Dot products are summed in runs of this many terms, the runs' sums one after the other: the
// rounding bound grows with kChain + D / kChain instead of D.
constexpr int64_t kChain = 64;

struct FilterKernel {
  int lanes;    // floats of one vector
  int columns;  // centroids of one panel: panels are [ceil(K / columns)][D][columns]
  int rows;     // rows of one register tile

  // Best and second-best score and the best's index for `num_rows` rows. `state` holds
  // num_rows * lanes * 3 floats.
  void (*top2)(const float* x, int64_t x_stride, int64_t num_rows, const float* panels,
               const float* bias, int64_t num_panels, int64_t dim, float* state, float* best,
               float* second, int32_t* index);

  // All scores of one row: [num_panels * columns].
  void (*scores)(const float* x, const float* panels, const float* bias, int64_t num_panels,
                 int64_t dim, float* out);
};

extern const FilterKernel kFilterGeneric;
#if defined(__x86_64__)
extern const FilterKernel kFilterAvx2;
extern const FilterKernel kFilterAvx512;
#endif

}  // namespace clustermim
