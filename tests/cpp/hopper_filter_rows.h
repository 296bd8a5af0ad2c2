// Rows of matrices for the Hopper filter: of every type, aligned or not, with many ties, with
// values that are not finite, dead and far centroids.
#pragma once

#include <sys/mman.h>

#include "hopper_filter_problem.h"

namespace clustermim::hopper::emulated {

template <class Type, bool kAligned, bool kEuclidean, int kDepth, int kCluster, bool kOneTile>
using Kind = Filter<MatrixRows<Type, kAligned, kEuclidean>, kDepth, kCluster, kEuclidean, kOneTile>;

// Of a float32: the bits as `Type` has them, and the value of these.
template <class Type>
uint32 bits_of(float v) {
  if (std::is_same_v<Type, Float16>) return to_half(v);
  return std::bit_cast<uint32>(v) >> (Type::bytes == 4 ? 0 : 16);
}
template <class Type>
double value_of(uint32 bits) {
  if (std::is_same_v<Type, Float16>) return of_half(static_cast<uint16>(bits));
  return std::bit_cast<float>(bits << (Type::bytes == 4 ? 0 : 16));
}

struct Case {
  int N, D, K;
  int blocks = 2;
  bool integers = false;    // many ties, no rounding
  bool not_finite = false;  // in some rows
  bool dead = false, far = false;
  long long row_stride = 0, column_stride = 1;  // 0: D, at least
};

template <class K, class Type>
int run(const Case& c) {  // how many rows are open
  Problem p(c.N, c.D, c.K);
  p.euclidean = K::kEuclidean;
  std::minstd_rand random(static_cast<unsigned>(c.N + 31 * c.D + 977 * c.K));
  std::normal_distribution<float> normal;
  const auto value = [&] { return c.integers ? float(int(random() % 5) - 2) : normal(random); };
  const bool framed = p.euclidean && !c.integers;
  p.scale = framed ? 4 : 1;
  for (int d = 0; framed && d < c.D; ++d) p.frame[d] = normal(random);

  const long long stride = std::max<long long>(c.row_stride, c.D * c.column_stride);
  const size_t bytes = ((c.N - 1) * stride + c.D * c.column_stride) * Type::bytes;
  void* x = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(x != MAP_FAILED);
  for (int row = 0; row < c.N; ++row)
    for (int d = 0; d < c.D; ++d) {
      float v = value();
      if (c.not_finite && row % 5 == 2 && d == row % c.D) v = row % 2 ? NAN : INFINITY;
      if (c.not_finite && row % 5 == 4 && d == row % c.D) v = 60000;  // times the scale: infinite
      const uint32 bits = bits_of<Type>(v);
      const long long at = row * stride + d * c.column_stride;
      if (Type::bytes == 4)
        static_cast<uint32*>(x)[at] = bits;
      else
        static_cast<uint16*>(x)[at] = static_cast<uint16>(bits);
      const double framed_value = value_of<Type>(bits) * p.scale - p.frame[d];
      p.rows.push_back(framed_value);
      p.row_operands.push_back(of_half(to_half(static_cast<float>(framed_value))));
    }
  for (int k = 0; k < c.K; ++k) {
    p.dead[k] = c.dead && k % 3 == 1;
    const double size = c.far && k % 7 == 3 ? 1000 : p.scale;
    for (int d = 0; d < c.D; ++d) p.points.push_back(value() * size - p.frame[d]);
  }
  p.prepare(false);
  p.arguments.x = x;
  p.arguments.row_stride = stride;
  p.arguments.column_stride = c.column_stride;
  CHECK(p.depth == K::kDepth && (p.tiles == 1 || !K::kOneTile));
  run_filter<K>(p.arguments, p.packed.data(), c.blocks);
  const int open = p.check_answer();
  munmap(x, bytes);
  std::printf("N %d D %d K %d: %d open\n", c.N, c.D, c.K, open);
  return open;
}

}  // namespace clustermim::hopper::emulated
