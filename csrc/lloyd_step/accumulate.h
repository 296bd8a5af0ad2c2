// Adds rows of float32 or float64 values to their centroids' float64 sums, and finds the squared
// distances to the centroids in the same pass.
//
// The same on every ISA path, bit for bit: a sum gets its rows one by one, in the order given;
// squares are summed in 16 lanes (lane d % 16, d ascending) of a row, or of one of four sums, row i
// of a call going to sum i % 4; no product is contracted with a sum. Plain pointers and no standard
// headers, so that a unit compiled for one ISA can share nothing with another.
#pragma once

#include <cstdint>

namespace clustermim {

constexpr int kDistanceLanes = 16, kDistanceSums = 4;

// Memory that will be needed soon, fetched into the second-level cache while rows are added: adding
// leaves the memory idle, and the assignment of the next block waits for it.
struct Upcoming {
  const char* begin = nullptr;
  const char* end = nullptr;
};

// A block of rows, and what is found out about them.
template <typename X>
struct BlockRows {
  const X* x;
  int64_t x_stride;
  const double* weights;  // [rows]; plain: not read
  double* distances;      // [rows], |x - c|^2; plain: not written
  double* squares;        // [kDistanceSums, kDistanceLanes], added to; plain only
  Upcoming* upcoming;     // begin moves on
};

template <typename C>
struct CentroidSums {
  const C* centroids;  // [K, dim]
  int64_t stride;      // of centroids
  int64_t dim;
  double* sums;  // [K, dim], not aliased by anything else
};

// kinds: plain; weighted; quantised, where sums are int64 multiples of kQuantum, to which values
// are rounded (half to even; |x| <= 64), plus kQuantisedZero for each row.
constexpr int kPlain = 0, kWeighted = 1, kQuantised = 2, kKinds = 3;
constexpr double kQuantum = 0x1p-28;  // clustermim_fast/ops/lloyd_step/reference.py has it too
// In [2^24, 2^25) neighbouring doubles are kQuantum apart, so that adding this rounds to it.
constexpr double kQuantisedOffset = 0x1.8p24;
constexpr uint64_t kQuantisedZero = 0x4178000000000000;  // the bits of kQuantisedOffset

template <typename X, typename C>
struct AccumulateKernel {
  // Rows order[0 .. count) of centroid `id`. order[count .. count + ahead) come next: their values
  // are fetched early.
  void (*add_group[kKinds])(const BlockRows<X>& rows, const int32_t* order, int64_t count,
                            int64_t ahead, const CentroidSums<C>& to, int64_t id);
  // Rows 0 .. count, of the centroids `ids`; -1 is left out.
  void (*add_rows[kKinds])(const BlockRows<X>& rows, const int64_t* ids, int64_t count,
                           const CentroidSums<C>& to);
};

struct AccumulateKernels {
  AccumulateKernel<float, float> float_float;
  AccumulateKernel<float, double> float_double;
  AccumulateKernel<double, double> double_double;
};

extern const AccumulateKernels kAccumulateGeneric;
#if defined(__x86_64__)
extern const AccumulateKernels kAccumulateAvx2;
extern const AccumulateKernels kAccumulateAvx512;
#endif

}  // namespace clustermim
