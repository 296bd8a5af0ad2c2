// A subspace that holds almost all of the centroids: scores are products of coordinates in it.
#pragma once

#include <cstdint>
#include <vector>

#include "assign/filter.h"
#include "core/aligned_vector.h"
#include "core/status.h"

namespace clustermim {

// out [n, m] = a [n, k] b [m, k]^T in float32, on the float32 filter of the kernel's ISA.
Status multiply_transposed(const float* a, int64_t n, const float* b, int64_t m, int64_t k,
                           int threads, float* out);

// When to project: where it pays, wherever it is possible (for tests), or never.
enum class ProjectionMode : int { automatic = 0, always = 1, never = 2 };
ProjectionMode projection_mode();
void set_projection_mode(ProjectionMode mode);

class Projection {
 public:
  // How many dimensions would serve `columns` centroids of `dim` values for `rows` rows; 0: the
  // products saved do not pay for the preparation.
  static int64_t choose_size(Format format, int64_t dim, int64_t columns, int64_t rows);

  // Finds a basis of `size` vectors for centroids [count, dim] (centred and scaled).
  Status find(const std::vector<float>& centroids, int64_t count, int64_t dim, int64_t size,
              const FilterKernel& kernel, int threads);

  // Upper bound on the error of a vector's coordinates computed in this format, over its length.
  float error(Format format, int64_t dim) const;

  int64_t size = 0;            // 0: there is none
  std::vector<float> basis;    // [size, dim], orthonormal but for `skew`
  float skew = 0.0f;           // upper bound on the spectral norm of basis basis^T - I
  float rounding = 0.0f;       // upper bound on the Frobenius norm of (packed - basis)
  AlignedVector<char> panels;  // the basis as tiles; for bfloat16 its high, then its low part
  AlignedVector<float> zero_bias;
  int64_t tiles = 0;  // of one part
  int parts = 1;

 private:
  void orthonormalise(int64_t dim);
  Status pack(int64_t dim, const FilterKernel& kernel, int threads);
};

}  // namespace clustermim
