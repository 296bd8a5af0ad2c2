// The Hopper filter's own source on the CPU, rows of matrices: sizes around a tile's, every type,
// ties, what is not finite, dead and far centroids, offsets beyond 32 bits.
#include <sys/mman.h>

#include "hopper_filter_problem.h"

using namespace clustermim;
using namespace clustermim::hopper;
using emulated::Problem;

namespace {

template <class Type, bool kAligned, bool kEuclidean, int kDepth, int kCluster, bool kOneTile>
using Kind = Filter<MatrixRows<Type, kAligned, kEuclidean>, kDepth, kCluster, kEuclidean, kOneTile>;

// Of a float32: the bits as `Type` has them, and the value of these.
template <class Type>
uint32 bits_of(float v) {
  if (std::is_same_v<Type, Float16>) return emulated::to_half(v);
  return std::bit_cast<uint32>(v) >> (Type::bytes == 4 ? 0 : 16);
}
template <class Type>
double value_of(uint32 bits) {
  if (std::is_same_v<Type, Float16>) return emulated::of_half(static_cast<uint16>(bits));
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
int run(const Case& c) {
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
      p.row_operands.push_back(
          emulated::of_half(emulated::to_half(static_cast<float>(framed_value))));
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
  emulated::run_filter<K>(p.arguments, p.packed.data(), c.blocks);
  const int open = p.check_answer();
  munmap(x, bytes);
  std::printf("N %d D %d K %d: %d open\n", c.N, c.D, c.K, open);
  return open;
}

void one_tile() {
  using F = Kind<Float32, true, true, 64, 1, true>;
  for (int N : {1, 127, 128, 129}) run<F, Float32>({N, 64, 17});
  CHECK((run<F, Float32>({300, 48, 128, 1}) < 30));
  run<F, Float32>({300, 48, 1, 3});
  CHECK((run<F, Float32>({300, 8, 100, 1, true}) > 30));  // ties
  run<F, Float32>({130, 48, 100, 2, false, true});
  run<F, Float32>({130, 48, 100, 2, false, false, true});
  run<F, Float32>({130, 48, 100, 2, false, false, false, true});
  using Pair = Kind<Float16, false, true, 64, 2, true>;
  run<Pair, Float16>({300, 5, 90, 2});
  run<Pair, Float16>({129, 63, 90, 4});
}

void several_tiles() {
  using F = Kind<Float32, true, true, 64, 2, false>;
  for (int K : {129, 257, 300}) CHECK((run<F, Float32>({300, 48, K}) < 60));
  run<F, Float32>({1, 48, 300});
  run<F, Float32>({300, 48, 300, 2, true});
  run<F, Float32>({300, 8, 300, 4, false, true, true, true});
  using Thin = Kind<Float32, false, true, 64, 1, false>;
  run<Thin, Float32>({140, 1, 200, 1, false, false, false, false, 7, 3});
}

void deep() {
  run<Kind<Bfloat16, true, true, 384, 2, false>, Bfloat16>({300, 384, 300});
  run<Kind<Float16, true, false, 256, 2, false>, Float16>({129, 200, 290});
  run<Kind<Bfloat16, false, false, 128, 1, false>, Bfloat16>({129, 100, 290, 1, false, true, true});
}

void far_apart_rows() {
  run<Kind<Bfloat16, false, false, 128, 1, false>, Bfloat16>(
      {3, 70, 140, 1, false, false, false, false, (1ll << 30) + 3});
}

}  // namespace

int main() {
  one_tile();
  several_tiles();
  deep();
  far_apart_rows();
  return 0;
}
