// The linear loss on Hopper, its own source on the CPU: few and many tiles for each kind of block,
// so that every barrier's parities come back.
#include "hopper_linear_truth.h"

using namespace clustermim::hopper;
using emulated::check_linear;

namespace {

template <int kDepth, int kCluster, bool kInput, bool kWeight>
void turns() {
  using F = Linear<Half::bfloat16, 16, kDepth, kCluster, kInput, kWeight>;
  for (int tiles : {0, 1, 2, 3, 4, 9})
    check_linear<F>({.samples = 1,
                     .per_sample = 64 * tiles + 5,
                     .dim = kCluster == 2 ? 264 : 8,
                     .classes = 3,
                     .clusters = 1,
                     .counted = 1});
}

template <int kDepth, int kCluster>
void every_gradient() {
  turns<kDepth, kCluster, true, true>();
  turns<kDepth, kCluster, false, true>();
  turns<kDepth, kCluster, true, false>();
  turns<kDepth, kCluster, false, false>();
}

// An infinite weight makes NaN of the zeros that fill up the last tile; every token's own logit
// there is -infinity.
void infinite_weight() {
  emulated::LinearProblem<Linear<Half::bfloat16, 16, 128, 1, false, true>> p(
      {.samples = 1, .per_sample = 70, .dim = 8, .classes = 3, .clusters = 1, .counted = 1});
  for (int token = 0; token < 70; ++token) {
    p.x[p.x_at(token, 0)] = 0xbf80;  // -1
    p.targets[token] = token % 2;
  }
  p.weight[2 * 8] = 0x7f80;  // infinity
  p.run();
  for (float v : p.parts) CHECK(std::isfinite(v));
  for (float v : p.db) CHECK(std::isfinite(v));
}

}  // namespace

int main() {
  infinite_weight();
  every_gradient<128, 1>();
  every_gradient<256, 2>();
  return 0;
}
