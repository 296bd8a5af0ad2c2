// The linear loss on Hopper, its own source on the CPU: both gradients of one block and of a pair,
// numbers of tokens around a tile, tokens that are none.
#include "hopper_linear_truth.h"

using namespace clustermim::hopper;
using emulated::check_linear;

int main() {
  using One = Linear<Half::bfloat16, 112, 128, 1, true, true>;
  for (int tokens : {1, 63, 64, 65, 200})
    check_linear<One>({.samples = 1,
                       .per_sample = tokens,
                       .dim = 64,
                       .classes = 100,
                       .clusters = 1,
                       .counted = 1,
                       .smoothing = 0.1f});
  check_linear<One>({.samples = 3, .per_sample = 90, .dim = 128, .classes = 112, .prefix = 1});
  // All logits are equal: the first class is the best.
  check_linear<One>(
      {.samples = 1, .per_sample = 70, .dim = 8, .classes = 99, .scale = 0, .bias = false});
  using Pair = Linear<Half::bfloat16, 112, 256, 2, true, true>;
  check_linear<Pair>({.samples = 2,
                      .per_sample = 150,
                      .dim = 512,
                      .classes = 100,
                      .clusters = 1,
                      .prefix = 1,
                      .smoothing = 0.1f,
                      .first = false});
  check_linear<Pair>({.samples = 3,
                      .per_sample = 70,
                      .dim = 264,
                      .classes = 99,
                      .relative = 1,
                      .each = true,
                      .weighted = true,
                      .short_targets = true});
  check_linear<Pair>(
      {.samples = 2, .per_sample = 70, .dim = 512, .classes = 100, .wrong = true, .strange = true});
  check_linear<Pair>({.samples = 2, .per_sample = 70, .dim = 512, .classes = 100, .counted = 0});
  return 0;
}
