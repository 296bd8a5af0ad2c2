// The linear loss in tiles without Python, small enough for the sanitizers: odd sizes, every subset
// of outputs, several threads, against a loop in double precision. The bounds are those of
// tests/ops/loss_truth.py; right values of large problems are tested there.
#include "masked_cross_entropy/linear_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "core/cpu_features.h"

using namespace clustermim;

namespace {

constexpr double kUnit = 1.0 / (1 << 24), kOperandUnit = 1.0 / 256;  // float32, bfloat16
constexpr double kSubnormal = 1e-37;                                 // 2^-126 and a few more of it

double value_of(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float v;
  std::memcpy(&v, &wide, sizeof(v));
  return v;
}

uint16_t bfloat16_of(float v) {  // towards zero: any value will do
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof(bits));
  return static_cast<uint16_t>(bits >> 16);
}

int64_t whole(int64_t size) {
  return (size + 31) / 32 * 32;
}

struct Outputs {
  bool input, weight, bias, argmax;
};

struct Problem {
  // Samples of 5 tokens and a prefix of 1: the input's rows have gaps, as has the weight.
  int64_t tokens, dim, classes, weight_stride;
  std::vector<uint16_t> input, weight, grad_input;
  std::vector<float> bias, stats, loss, grad_weight, grad_bias;
  std::vector<int64_t> rows, with_rest, target, argmax;
  std::vector<double> scale;
  double smoothing;

  Problem(int64_t n, int64_t d, int64_t k, double e)
      : tokens(n), dim(d), classes(k), weight_stride(d + 3), smoothing(e) {
    std::mt19937 random(static_cast<unsigned>(n + 131 * d + 7919 * k));
    std::normal_distribution<float> normal;
    const int64_t samples = (n + 4) / 5;
    for (int64_t i = 0; i < samples * 6 * d; ++i) input.push_back(bfloat16_of(normal(random)));
    for (int64_t i = 0; i < k * weight_stride; ++i) weight.push_back(bfloat16_of(normal(random)));
    for (int64_t i = 0; i < k; ++i) bias.push_back(normal(random));
    for (int64_t i = 0; i < n; ++i) {
      target.push_back(static_cast<int64_t>(random() % k));
      if (random() % 4) rows.push_back(i);
    }
    with_rest = rows;
    for (int64_t i = 0; i < n; i += 2) {
      if (!std::binary_search(rows.begin(), rows.end(), i)) with_rest.push_back(i);
    }
    for (size_t i = 0; i < rows.size(); ++i) scale.push_back(normal(random));
    stats.resize(2 * n);
    loss.resize(rows.size());
    argmax.resize(rows.size());
    grad_input.assign(samples * 6 * d, 0x7fc0);  // NaN: what is not written shows
    grad_weight.assign(whole(k) * whole(d), NAN);
    grad_bias.assign(whole(k), NAN);
  }

  int64_t start(int64_t token) const { return (token / 5 * 6 + token % 5 + 1) * dim; }

  LinearRowsArgs args(const Outputs& wanted, int threads) {
    LinearRowsArgs a = {};
    a.input = input.data() + dim;
    a.sample_stride = a.grad_sample_stride = 6 * dim;
    a.row_stride = a.grad_row_stride = dim;
    a.rows_per_sample = 5;
    a.dim = dim;
    a.rows = with_rest.data();
    a.num_rows = static_cast<int64_t>(rows.size());
    a.num_rest = static_cast<int64_t>(with_rest.size()) - a.num_rows;
    a.num_tokens = tokens;
    a.weight = weight.data();
    a.weight_stride = weight_stride;
    a.num_classes = classes;
    a.bias = bias.data();
    a.target = target.data();
    a.label_smoothing = smoothing;
    a.stats = stats.data();
    a.loss = loss.data();
    a.argmax = wanted.argmax ? argmax.data() : nullptr;
    a.scale = wanted.input || wanted.weight || wanted.bias ? scale.data() : nullptr;
    a.grad_input = wanted.input ? grad_input.data() + dim : nullptr;
    a.grad_weight = wanted.weight ? grad_weight.data() : nullptr;
    a.grad_bias = wanted.bias ? grad_bias.data() : nullptr;
    a.threads = threads;
    return a;
  }
};

// Sums of products: the value, and the same of what each factor may miss and of its rounding.
struct Sum {
  double value = 0, error = 0, size = 0;
  int64_t terms = 0;
  void add(double a, double a_error, double a_size, double b) {
    value += a * b;
    error += a_error * std::abs(b);
    size += a_size * std::abs(b);
    ++terms;
  }
  double bound() const {
    return error + static_cast<double>(terms + 8) * kUnit * size + kSubnormal;
  }
};

void check_close(double got, const Sum& want, double last_rounding) {
  const double allowed = want.bound() + last_rounding * (std::abs(want.value) + want.bound());
  CHECK(std::abs(got - want.value) <= allowed);
}

void check_problem(int64_t tokens, int64_t dim, int64_t classes, double e, const Outputs& wanted,
                   int threads) {
  Problem p(tokens, dim, classes, e);
  CHECK(linear_cross_entropy_rows(p.args(wanted, threads)).ok());
  std::vector<Sum> of_weight(classes * dim), of_bias(classes);
  for (size_t i = 0; i < p.rows.size(); ++i) {
    const int64_t token = p.rows[i], y = p.target[token];
    const uint16_t* x = p.input.data() + p.start(token);
    std::vector<double> z(classes);
    double z_error = 0, top = -INFINITY, low = INFINITY;
    for (int64_t k = 0; k < classes; ++k) {
      double size = std::abs(p.bias[k]);
      z[k] = p.bias[k];
      for (int64_t j = 0; j < dim; ++j) {
        const double product = value_of(x[j]) * value_of(p.weight[k * p.weight_stride + j]);
        z[k] += product;
        size += std::abs(product);
      }
      z_error = std::max(z_error, static_cast<double>(dim + 4) * kUnit * size);
      top = std::max(top, z[k]);
      low = std::min(low, z[k]);
    }
    double sum = 0, mean = 0, mean_size = 0;
    for (int64_t k = 0; k < classes; ++k) {
      sum += std::exp(z[k] - top);
      mean += z[k] / static_cast<double>(classes);
      mean_size += std::max(std::abs(z[k]), top - z[k]) / static_cast<double>(classes);
    }
    const double lse = top + std::log(sum), count = static_cast<double>(classes);
    const double relative = 2 * z_error + kUnit * (2 * (top - low) + count + 24);
    const double loss = lse - (1 - e) * z[y] - e * mean;
    CHECK(std::abs(p.loss[i] - loss) <= relative +
                                            4 * kUnit * (std::abs(loss) + std::log(count) + 1) +
                                            kUnit * (count + 8) * e * mean_size);
    CHECK(std::abs(p.stats[token] - top) <= z_error + kUnit * std::abs(top));
    if (wanted.argmax) CHECK(p.argmax[i] >= 0 && z[p.argmax[i]] >= top - 2 * z_error);
    const double scale = p.scale[i], size = std::abs(scale), constant = e / count;
    std::vector<Sum> of_input(dim);
    for (int64_t k = 0; k < classes; ++k) {
      const double soft = std::exp(z[k] - lse), hard = k == y ? 1 - e : 0;
      const double exact = soft * std::expm1(relative) + 12 * kUnit * (soft + hard + constant);
      const double error =
          size * (exact + kOperandUnit * (std::abs(soft - hard) + exact)) + kSubnormal;
      const double value = scale * (soft - hard - constant);
      const double magnitude = size * (std::abs(soft - hard) + constant);
      for (int64_t j = 0; j < dim; ++j) {
        of_input[j].add(value, error, magnitude, value_of(p.weight[k * p.weight_stride + j]));
        of_weight[k * dim + j].add(value, error, magnitude, value_of(x[j]));
      }
      of_bias[k].add(value, size * exact + kSubnormal, magnitude, 1);
    }
    if (!wanted.input) continue;
    for (int64_t j = 0; j < dim; ++j) {
      check_close(value_of(p.grad_input[p.start(token) + j]), of_input[j], kOperandUnit);
    }
  }
  for (int64_t k = 0; k < classes; ++k) {
    for (int64_t j = 0; j < dim && wanted.weight; ++j) {
      check_close(p.grad_weight[k * whole(dim) + j], of_weight[k * dim + j], 0);
    }
    if (wanted.bias) check_close(p.grad_bias[k], of_bias[k], 0);
  }
  // Zeros in the rest; tokens that are in no list are left alone.
  for (int64_t token = 0, i = 0; token < tokens && wanted.input; ++token) {
    const bool listed = i < static_cast<int64_t>(p.rows.size()) && p.rows[i] == token;
    if (listed) ++i;
    const int want = token % 2 == 0 ? 0 : 0x7fc0;
    for (int64_t j = 0; j < dim && !listed; ++j) CHECK(p.grad_input[p.start(token) + j] == want);
  }
}

void check_refusals() {
  Problem p(6, 3, 4, 0);
  const Outputs all = {true, true, true, true};
  const int64_t foreign[1] = {6}, token[1] = {0};
  LinearRowsArgs args = p.args(all, 1);
  args.input = nullptr;
  CHECK(linear_cross_entropy_rows(args).code == StatusCode::invalid_argument);
  args = p.args(all, 1);
  args.rows = foreign;
  args.num_rows = 1;
  args.num_rest = 0;
  CHECK(linear_cross_entropy_rows(args).code == StatusCode::invalid_argument);
  args.num_rows = 0;
  args.num_rest = 1;
  CHECK(linear_cross_entropy_rows(args).code == StatusCode::invalid_argument);
  args.num_rows = 1;
  args.num_rest = 0;
  args.rows = token;
  p.target[0] = 4;
  CHECK(linear_cross_entropy_rows(args).code == StatusCode::index_error);
  args.num_classes = 0;
  CHECK(linear_cross_entropy_rows(args).code == StatusCode::invalid_argument);
  args = p.args(all, 1);
  args.num_rows = 0;
  CHECK(linear_cross_entropy_rows(args).ok());
  for (const float v : p.grad_weight) CHECK(v == 0);
  for (const float v : p.grad_bias) CHECK(v == 0);
}

// A small dW in parts: how many threads share them changes no bit.
void check_parts() {
  const Outputs all = {true, true, true, true};
  Problem one(3000, 33, 40, 0.1), three(3000, 33, 40, 0.1);
  CHECK(linear_cross_entropy_rows(one.args(all, 1)).ok());
  CHECK(linear_cross_entropy_rows(three.args(all, 3)).ok());
  CHECK(one.grad_input == three.grad_input && one.loss == three.loss);
  CHECK(one.grad_bias == three.grad_bias);
  const size_t bytes = one.grad_weight.size() * sizeof(float);  // its padding keeps its NaN
  CHECK(std::memcmp(one.grad_weight.data(), three.grad_weight.data(), bytes) == 0);
}

}  // namespace

int main() {
  if (!set_isa("generic").ok()) return 1;
  CHECK(!linear_rows_usable());
  Problem p(3, 2, 2, 0);
  CHECK(linear_cross_entropy_rows(p.args({}, 1)).code == StatusCode::invalid_argument);
  if (!set_isa("amx").ok()) return 0;  // this machine has no tiles
  CHECK(linear_rows_usable());
  for (const int64_t dim : {1, 2, 31, 32, 33, 50, 97}) {
    for (const int64_t classes : {1, 2, 31, 32, 33, 65, 100}) {
      const double e = (dim + classes) % 2 ? 0.1 : 0.0;
      check_problem(1 + (dim * classes) % 90, dim, classes, e, {true, true, true, true}, 1);
    }
  }
  check_problem(600, 40, 70, 0.1, {true, true, true, true}, 3);
  check_problem(3000, 33, 40, 0.1, {true, true, true, true}, 3);  // dW in parts
  check_problem(3000, 33, 40, 0.0, {true, true, false, true}, 2);
  check_parts();
  check_problem(400, 33, 2500, 0.1, {true, true, true, false}, 2);  // panels in two blocks
  for (int subset = 0; subset < 16; ++subset) {
    const Outputs wanted = {(subset & 1) != 0, (subset & 2) != 0, (subset & 4) != 0,
                            (subset & 8) != 0};
    check_problem(75, 33, 50, 0.1, wanted, 2);
    check_problem(75, 33, 50, 0.0, wanted, 1);
  }
  check_refusals();
  return 0;
}
