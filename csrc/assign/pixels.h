// The filter of uint8 pixels: 8-bit integer dot products, exact in int32.
//
// A packed row holds the patch's pixels p as they are, in the order that copies fastest, padded
// with 128. A centroid is sigma v / A with integers v and A the scaled step of a pixel: 8 bits of v
// for the scores of all columns, 16 bits for the few that these leave open. The score is
// T = sigma V + bias with V = sum (p - 128) v, taken modulo 2^32 as sum p v + start with
// start = -128 sum v. Plain pointers and no standard headers below, so that a unit compiled for one
// ISA can share nothing with another. docs/certificate.md derives the errors.
#pragma once

#include <cstdint>

namespace clustermim {

// Where the bytes of a patch are: planes * lines runs of `run` bytes.
struct PatchRuns {
  int64_t planes, plane_stride;
  int64_t lines, line_stride;
  int64_t run;
  int64_t next;  // from a patch to its right neighbour
};

struct CentredSums {
  double norm2;      // of out
  double sum, most;  // of |out step|
};

struct RoundedSums {
  double norm2, error2;  // of v sigma / step, and of its distance from `centred`
  int32_t total;         // of v
};

struct PixelKernel {
  int strip_rows;  // most rows of one call of `scores`

  // Copies `count` patches that stand side by side, the first at `patch`, to rows row_bytes apart;
  // the padding is left alone. `ahead` is the first of as many patches to be read soon, or null.
  void (*pack_rows)(const PatchRuns& runs, const uint8_t* patch, const uint8_t* ahead,
                    int64_t count, uint8_t* rows, int64_t row_bytes);
  // norm2[r] = sum_d weights[d] (p_d - 128)^2 over padded_dim values, a multiple of 64, summed in
  // runs (filter.h: kSquares). group_weights [padded_dim / 64] where the weights are one in each
  // group of 64, else null.
  void (*norms)(const uint8_t* rows, int64_t row_bytes, int64_t count, int64_t padded_dim,
                const float* weights, const float* group_weights, float* norm2);

  // Around the calls of `scores` for a block of rows, on the thread that makes them.
  void (*enter)();
  void (*leave)();

  // Scores of `count` <= strip_rows rows against `tiles` tiles: out [strip_rows, tiles * 16].
  // Rows up to strip_rows must be readable. start, sigma, bias: [tiles * 16].
  void (*scores)(const uint8_t* rows, int64_t row_bytes, int64_t count, const int8_t* panels,
                 const int32_t* start, const float* sigma, const float* bias, int64_t tiles,
                 int64_t steps, float* out, int64_t out_stride);

  // sum p v modulo 2^32 of one row and v = 256 hi + lo, given as hi [padded_dim], lo [padded_dim].
  uint32_t (*dot)(const uint8_t* row, const int8_t* hi, const int8_t* lo, int64_t padded_dim);

  // Centroids, in float64: out[k] = (c[feature[k]] - origin[k]) * scale.
  CentredSums (*centre)(const double* c, const int32_t* feature, const double* origin,
                        const double* step, double scale, int64_t dim, double* out);
  // v[k] = round(centred[k] step[k] / sigma), |v| < 2^15, as hi (may be null) and lo.
  RoundedSums (*quantise)(const double* centred, const double* step, const double* inverse_step,
                          double sigma, int64_t dim, int8_t* hi, int8_t* lo);
};

// A tile: 16 centroids, for each step of 64 values [16 quads][16 centroids][4].
constexpr int64_t kPixelTile = 16;
constexpr int64_t kPixelStep = 64;
constexpr int64_t kPixelStepBytes = kPixelTile * kPixelStep;

#if defined(__x86_64__)
extern const PixelKernel kPixelsVnni;
extern const PixelKernel kPixelsAmx;
#endif

}  // namespace clustermim
