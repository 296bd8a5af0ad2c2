// The row kernels without Python, small enough for the sanitizers: every ISA path, every tail,
// edges of memory. The tests of right values are in tests/ops.
#include "masked_cross_entropy/masked_cross_entropy.h"

#include <cmath>
#include <random>
#include <vector>

#include "check.h"
#include "core/cpu_features.h"

using namespace clustermim;

namespace {

struct Problem {
  int64_t tokens, classes;
  std::vector<float> logits;
  std::vector<int64_t> target, rows;
  std::vector<uint8_t> mask;
  RowListResult listed;

  Problem(int64_t n, int64_t k) : tokens(n), classes(k), rows(n) {
    std::mt19937 random(static_cast<unsigned>(n + 31 * k));
    std::normal_distribution<float> value;
    for (int64_t i = 0; i < n * k; ++i) logits.push_back(value(random));
    for (int64_t i = 0; i < n; ++i) {
      target.push_back(i % 5 == 4 ? -1 : static_cast<int64_t>(random() % k));
      mask.push_back(random() % 3 != 0);
    }
    const RowListArgs args = {target.data(), mask.data(), n, n, -1, k, -1, rows.data()};
    CHECK(masked_row_list(args, listed).ok());
    CHECK(listed.wrong_target == -1);
  }

  CrossEntropyRows rows_args(double smoothing, int threads) const {
    CrossEntropyRows args = {};
    args.logits = logits.data();
    args.logits_dtype = DType::f32;
    args.row_stride = classes;
    args.rows_per_sample = tokens;
    args.num_classes = classes;
    args.rows = rows.data();
    args.num_rows = listed.count;
    args.num_tokens = tokens;
    args.target = target.data();
    args.label_smoothing = smoothing;
    args.threads = threads;
    return args;
  }
};

void check_problem(int64_t tokens, int64_t classes, int threads) {
  const Problem p(tokens, classes);
  const double e = 0.1;
  std::vector<float> stats(2 * tokens), loss(p.listed.count);
  std::vector<double> scale(p.listed.count, 0.5);
  std::vector<float> grad(tokens * classes, NAN);
  std::vector<int64_t> argmax(p.listed.count);
  CHECK(cross_entropy_forward({p.rows_args(e, threads), stats.data(), loss.data(), argmax.data()})
            .ok());
  CHECK(cross_entropy_backward(
            {p.rows_args(e, threads), stats.data(), scale.data(), grad.data(), true})
            .ok());
  for (int64_t i = 0; i < tokens; ++i) {
    const int64_t token = p.rows[i];
    const float* z = p.logits.data() + token * classes;
    const float* g = grad.data() + token * classes;
    if (i >= p.listed.count) {
      for (int64_t k = 0; k < classes; ++k) CHECK(g[k] == 0);
      continue;
    }
    double sum = 0, mean = 0;
    int64_t best = 0;
    for (int64_t k = 0; k < classes; ++k) {
      sum += std::exp(static_cast<double>(z[k]));
      mean += z[k] / static_cast<double>(classes);
      if (z[k] > z[best]) best = k;
    }
    const int64_t y = p.target[token];
    CHECK(std::abs(loss[i] - (std::log(sum) - (1 - e) * z[y] - e * mean)) < 1e-5);
    CHECK(argmax[i] == best);
    for (int64_t k = 0; k < classes; ++k) {
      const double expected = std::exp(z[k]) / sum - (k == y) * (1 - e) - e / classes;
      CHECK(std::abs(g[k] - 0.5 * expected) < 1e-6);
    }
  }
}

void check_refusals() {
  Problem p(6, 3);
  std::vector<float> stats(12), loss(6);
  CrossEntropyForwardArgs args = {p.rows_args(0, 1), stats.data(), loss.data(), nullptr};
  args.logits = nullptr;
  CHECK(cross_entropy_forward(args).code == StatusCode::invalid_argument);
  args = {p.rows_args(0, 1), stats.data(), loss.data(), nullptr};
  const int64_t foreign[1] = {6};
  args.rows = foreign;
  args.num_rows = 1;
  CHECK(cross_entropy_forward(args).code == StatusCode::invalid_argument);
  const int64_t token[1] = {0};
  args.rows = token;
  p.target[0] = 3;
  CHECK(cross_entropy_forward(args).code == StatusCode::index_error);
  args.num_rows = 0;
  CHECK(cross_entropy_forward(args).ok());
}

}  // namespace

int main() {
  for (const char* isa : {"generic", "avx2", "avx512"}) {
    if (!set_isa(isa).ok()) continue;
    for (const int64_t classes : {1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 100}) {
      check_problem(37, classes, 1);
      check_problem(700, classes, 3);
    }
  }
  CHECK(set_isa("auto").ok());
  check_refusals();
  return 0;
}
