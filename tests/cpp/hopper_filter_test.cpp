// The Hopper filter's own source on the CPU, up to 128 centroids: sizes around a tile of rows,
// ties, what is not finite, dead and far centroids.
#include "hopper_filter_rows.h"

using namespace clustermim::hopper;
using emulated::Kind;
using emulated::run;

int main() {
  using F = Kind<Float32, true, true, 64, 1, true>;
  for (int N : {1, 127, 128, 129}) run<F, Float32>({N, 64, 17});
  CHECK((run<F, Float32>({300, 48, 128, 1}) < 30));
  run<F, Float32>({300, 48, 1, 3});
  CHECK((run<F, Float32>({.N = 300, .D = 8, .K = 100, .blocks = 1, .integers = true}) > 30));
  run<F, Float32>({.N = 130, .D = 48, .K = 100, .not_finite = true});
  run<F, Float32>({.N = 130, .D = 48, .K = 100, .dead = true});
  run<F, Float32>({.N = 130, .D = 48, .K = 100, .far = true});
  using Pair = Kind<Float16, false, true, 64, 2, true>;
  run<Pair, Float16>({300, 5, 90, 2});
  run<Pair, Float16>({.N = 129, .D = 63, .K = 90, .blocks = 4, .column_stride = 2});
  return 0;
}
