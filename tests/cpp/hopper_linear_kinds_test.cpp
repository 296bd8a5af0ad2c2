// The same of every kind: each gradient alone or none, float16, few classes and many, backwards
// with given statistics, dX made again.
#include <sys/mman.h>

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
                       .relative = 1});
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
                      .relative = 1,
                      .wrong = true,
                      .strange = true,
                      .backward = true});
  using One = Linear<Half::bfloat16, 32, 128, 1, true, false>;
  check_linear<One>(
      {.samples = 2, .per_sample = 70, .dim = 8, .classes = 20, .backward = true, .again = 3});
}

// Of infinite losses none is NaN, and a class without a share makes no other token's infinite.
void impossible_class() {
  using Loss = Linear<Half::bfloat16, 16, 128, 1, false, false>;
  for (float smoothing : {0.0f, 1.0f})
    check_linear<Loss>({.samples = 1,
                        .per_sample = 70,
                        .dim = 8,
                        .classes = 10,
                        .smoothing = smoothing,
                        .each = true,
                        .impossible = true});
}

// Light tokens whose gradients are scaled: of float16 they would be subnormal.
void light_tokens() {
  using Light = Linear<Half::float16, 112, 128, 1, true, true>;
  check_linear<Light>({.samples = 1,
                       .per_sample = 70,
                       .dim = 128,
                       .classes = 100,
                       .clusters = 1,
                       .factor = 0x1p14f,
                       .relative = 0x1p-14f});
}

// Samples that 32 bits do not reach, in memory that is only there where it is touched.
void far_apart() {
  using Loss = Linear<Half::bfloat16, 16, 128, 1, true, false>;
  LinearProblem<Loss> p({.samples = 3, .per_sample = 50, .dim = 64, .classes = 10, .prefix = 1});
  const int64 apart = (1ll << 30) + 8, x_sample = p.a.x_sample, dx_sample = p.a.dx_sample;
  const size_t bytes = 2 * (2 * apart + dx_sample);
  uint16* far[2];
  for (uint16*& at : far) {
    void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(memory != MAP_FAILED);
    at = static_cast<uint16*>(memory);
  }
  emulated::check_answer(p, [&] {
    for (int s = 0; s < 3; ++s) {
      std::copy_n(&p.x[s * x_sample], x_sample, far[0] + s * apart);
      std::copy_n(&p.dx[s * dx_sample], dx_sample, far[1] + s * apart);
    }
    p.a.x = far[0], p.a.dx = far[1], p.a.x_sample = p.a.dx_sample = apart;
    p.run();
    for (int s = 0; s < 3; ++s) std::copy_n(far[1] + s * apart, dx_sample, &p.dx[s * dx_sample]);
  });
  for (uint16* at : far) munmap(at, bytes);
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
  impossible_class();
  light_tokens();
  far_apart();
  backward();
  not_again();
  return 0;
}
