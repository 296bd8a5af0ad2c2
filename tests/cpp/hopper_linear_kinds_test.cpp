// The same of every kind: each gradient alone or none, float16, few classes and many, backwards
// with given statistics, dX made again.
#include "hopper_linear_truth.h"

using namespace clustermim::hopper;
using emulated::check_linear;
using emulated::LinearProblem;

namespace {

void one_gradient_or_none() {
  using Loss = Linear<Half::bfloat16, 64, 256, 2, false, false>;
  check_linear<Loss>(
      {.samples = 2, .per_sample = 130, .dim = 512, .classes = 64, .smoothing = 1, .db = false});
  check_linear<Loss>({.samples = 1,
                      .per_sample = 200,
                      .dim = 296,
                      .classes = 50,
                      .clusters = 1,
                      .each = true,
                      .wrong = true});
  // Many tiles, more than the rounds of a stage have parities: no group may be ahead of the other.
  using Fast = Linear<Half::bfloat16, 16, 128, 1, false, false>;
  check_linear<Fast>({.samples = 1,
                      .per_sample = 4000,
                      .dim = 8,
                      .classes = 3,
                      .clusters = 1,
                      .counted = 1,
                      .db = false});
  using Input = Linear<Half::float16, 16, 256, 2, true, false>;
  check_linear<Input>({.samples = 2,
                       .per_sample = 200,
                       .dim = 400,
                       .classes = 1,
                       .clusters = 1,
                       .prefix = 2,
                       .db = false});
  check_linear<Input>({.samples = 2,
                       .per_sample = 100,
                       .dim = 512,
                       .classes = 7,
                       .smoothing = 0.3f,
                       .relative = true});
  using Weight = Linear<Half::float16, 48, 256, 1, false, true>;
  check_linear<Weight>({.samples = 2,
                        .per_sample = 200,
                        .dim = 200,
                        .classes = 40,
                        .clusters = 1,
                        .smoothing = 0.1f,
                        .db = false});
}

void most_classes() {
  using Pair = Linear<Half::float16, 128, 256, 2, true, true>;
  check_linear<Pair>({.samples = 2,
                      .per_sample = 100,
                      .dim = 512,
                      .classes = 128,
                      .clusters = 1,
                      .smoothing = 0.1f,
                      .scale = 8});
  using One = Linear<Half::bfloat16, 128, 256, 1, true, true>;
  check_linear<One>({.samples = 2,
                     .per_sample = 150,
                     .dim = 256,
                     .classes = 113,
                     .prefix = 1,
                     .bias = false,
                     .weighted = true});
}

void backward() {
  using Pair = Linear<Half::float16, 112, 256, 2, true, true>;
  check_linear<Pair>({.samples = 2,
                      .per_sample = 140,
                      .dim = 512,
                      .classes = 100,
                      .smoothing = 0.1f,
                      .relative = true,
                      .strange = true,
                      .backward = true});
  using One = Linear<Half::bfloat16, 32, 128, 1, true, false>;
  check_linear<One>(
      {.samples = 2, .per_sample = 70, .dim = 8, .classes = 20, .backward = true, .again = 3});
}

// A grad_output that is a power of two leaves dX as it is.
void not_again() {
  using One = Linear<Half::bfloat16, 32, 128, 1, true, false>;
  for (float grad : {4.0f, 0.0f, 1.0f, 0x1p-20f}) {
    LinearProblem<One> p({.samples = 2,
                          .per_sample = 70,
                          .dim = 8,
                          .classes = 20,
                          .prefix = 1,
                          .backward = true,
                          .db = false});
    p.again = grad, p.a.again = &p.again;
    const auto before = p.dx;
    p.run();
    CHECK(p.dx == before);
  }
}

}  // namespace

int main() {
  one_gradient_or_none();
  most_classes();
  backward();
  not_again();
  return 0;
}
