// The same with several tiles of centroids: every type, depths up to the largest, offsets of rows
// beyond 32 bits.
#include "hopper_filter_rows.h"

using namespace clustermim::hopper;
using emulated::Kind;
using emulated::run;

namespace {

void several_tiles() {
  using F = Kind<Float32, true, true, 64, 2, false>;
  for (int K : {129, 257, 300}) CHECK((run<F, Float32>({300, 48, K}) < 60));
  run<F, Float32>({1, 48, 300});
  run<F, Float32>({.N = 300, .D = 48, .K = 300, .integers = true});
  run<F, Float32>(
      {.N = 300, .D = 8, .K = 300, .blocks = 4, .not_finite = true, .dead = true, .far = true});
  using Thin = Kind<Float32, false, true, 64, 1, false>;
  run<Thin, Float32>(
      {.N = 140, .D = 1, .K = 200, .blocks = 1, .row_stride = 7, .column_stride = 3});
}

void deep() {
  run<Kind<Bfloat16, true, true, 384, 2, false>, Bfloat16>({300, 384, 300});
  run<Kind<Float16, true, false, 256, 2, false>, Float16>({129, 200, 290});
  run<Kind<Float16, true, true, 768, 1, false>, Float16>({20, 768, 257});
  run<Kind<Bfloat16, false, false, 128, 1, false>, Bfloat16>(
      {.N = 129, .D = 100, .K = 290, .blocks = 1, .not_finite = true, .dead = true});
}

void far_apart_rows() {
  run<Kind<Bfloat16, false, false, 128, 1, false>, Bfloat16>(
      {.N = 3, .D = 70, .K = 140, .blocks = 1, .row_stride = (1ll << 30) + 3});
}

}  // namespace

int main() {
  several_tiles();
  deep();
  far_apart_rows();
  return 0;
}
