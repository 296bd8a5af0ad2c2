// Problems for the linear loss on Hopper, what is true of them in float64, and how far from it an
// answer may be: every bound is that of the roundings that the formula needs.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "masked_cross_entropy/run_linear.h"

namespace clustermim::hopper::emulated {

struct LinearOptions {
  int samples, per_sample, dim, classes;  // per_sample: without the prefix
  int clusters = 2, prefix = 0;
  double counted = 0.75;                            // of all tokens
  float smoothing = 0, factor = 0.125f, scale = 1;  // scale: of the logits
  float relative = 0;                               // the largest; 0: 1 for all
  bool bias = true, each = false, metrics = true, weighted = false;
  bool short_targets = false, wrong = false, strange = false, backward = false, db = true;
  bool impossible = false;  // class 0, by its bias
  bool first = true;        // token 0 may count
  float again = 0;          // a grad_output, where dX is there for 1
};

inline double value_of(Half type, uint16 bits) {
  if (type == Half::float16) return of_half(bits);
  return std::bit_cast<float>(uint32(bits) << 16);
}

// The nearest, ties to even.
inline uint16 round_to(Half type, double value) {
  if (type == Half::float16) return to_half(value);
  const uint32 bits = std::bit_cast<uint32>(static_cast<float>(value));
  return static_cast<uint16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <class T>
std::vector<T> garbage(size_t count) {
  std::vector<T> values(count);
  std::memset(values.data(), 0x7f, count * sizeof(T));
  return values;
}

// What a kernel is given and fills.
template <class F>
struct LinearProblem {
  const LinearOptions o;
  const int tokens = o.samples * o.per_sample, blocks = o.clusters * F::kCluster;
  const int x_row = o.dim + 8, dx_row = o.dim + 16;  // strides
  const int64 rows_of_sample = o.prefix + o.per_sample;
  std::vector<uint16> x, weight, dx;
  std::vector<float> bias, stats, each, direction, parts, db, relative;
  std::vector<int64> targets, rows, histogram;
  std::vector<int> short_targets;
  std::vector<double> token_weight, sums;
  std::vector<unsigned char> wrong;
  int64 counted = 0, correct = 0;
  float factor, again;
  LinearArguments a = {};

  explicit LinearProblem(const LinearOptions& options) : o(options) {
    std::minstd_rand random(o.dim * 131 + o.classes * 7 + o.per_sample);
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> uniform;
    const auto draw = [&](size_t count, double size) {
      std::vector<uint16> values(count);
      for (uint16& v : values) v = round_to(F::kType, size * normal(random));
      return values;
    };
    x.assign(o.samples * rows_of_sample * x_row, 0x7fff);  // NaN, but for tokens that count
    weight = draw(size_t(o.classes) * o.dim, o.scale / std::sqrt(double(o.dim)));
    bias.assign(F::kClasses, -std::numeric_limits<float>::infinity());
    for (int k = 0; k < o.classes; ++k) bias[k] = o.bias ? float(normal(random)) : 0.0f;
    if (o.impossible) bias[0] = -std::numeric_limits<float>::infinity();
    std::vector<int64> others;
    for (int t = 0; t < tokens; ++t) {
      targets.push_back(random() % o.classes);
      token_weight.push_back(uniform(random));
      (uniform(random) < o.counted && (t > 0 || o.first) ? rows : others).push_back(t);
    }
    counted = static_cast<int64>(rows.size());
    for (int64 t : rows) std::ranges::copy(draw(o.dim, 1), x.begin() + x_at(t, 0));
    rows.insert(rows.end(), others.begin(), others.end());
    if (o.strange && counted > 8) {  // classes that are none, logits that are none
      targets[rows[1]] = o.classes, targets[rows[2]] = -5, targets[rows[3]] = int64(1) << 40;
      x[x_at(rows[5], 0)] = round_to(F::kType, std::numeric_limits<double>::infinity());
    }
    for (int64 t : others) targets[t] = -100;
    short_targets.assign(targets.begin(), targets.end());
    wrong.assign(o.samples, 0);
    if (o.wrong) wrong.back() = 1;
    for (int n = 0; n < tokens; ++n)
      relative.push_back(n < counted ? o.relative * float(uniform(random)) : 0.0f);
    for (int d = 0; d < o.dim; ++d) {
      double sum = 0;
      for (int k = 0; k < o.classes; ++k) sum += w(k, d);
      direction.push_back(float(o.smoothing * sum / o.classes));
    }
    factor = o.factor, again = o.again;
    histogram.assign(o.classes, 0);
    stats = garbage<float>(2 * tokens), each = garbage<float>(tokens);
    sums = garbage<double>(blocks), db = garbage<float>(size_t(blocks) * o.classes);
    dx = garbage<uint16>(o.samples * rows_of_sample * dx_row);
    parts = garbage<float>(size_t(o.clusters) * o.classes * o.dim);
    fill_arguments();
  }

  void fill_arguments() {
    a.x = x.data(), a.weight = weight.data(), a.bias = bias.data(), a.rows = rows.data();
    a.target = o.short_targets ? static_cast<const void*>(short_targets.data()) : targets.data();
    a.target_bytes = o.short_targets ? 4 : 8;
    a.counted = &counted, a.stats = stats.data();
    if (!o.backward) {
      a.writes_losses = 1;
      (o.each ? a.each = each.data() : nullptr), (o.each ? nullptr : a.sums = sums.data());
      if (o.metrics) a.correct = &correct, a.histogram = histogram.data();
      if (o.weighted) a.token_weight = token_weight.data();
      if (o.wrong) a.wrong = wrong.data();
    }
    a.factor = &factor;
    if (o.relative > 0) a.relative = relative.data();
    if (o.again != 0) a.again = &again;
    if (F::kInput) a.dx = dx.data();
    if (F::kInput && o.smoothing > 0) a.direction = direction.data();
    if (F::kWeight) a.parts = parts.data();
    if (o.db) a.db = db.data();
    a.x_sample = rows_of_sample * x_row, a.x_row = x_row, a.weight_row = o.dim;
    a.dx_sample = rows_of_sample * dx_row, a.dx_row = dx_row;
    a.num_tokens = tokens, a.num_classes = o.classes, a.dim = o.dim;
    a.per_sample = o.per_sample, a.prefix = o.prefix, a.samples = o.samples;
    a.smoothing = o.smoothing;
  }

  size_t x_at(int64 token, int d) const {
    return token / o.per_sample * a_sample(x_row) + (o.prefix + token % o.per_sample) * x_row + d;
  }
  size_t dx_at(int64 token, int d) const {
    return token / o.per_sample * a_sample(dx_row) + (o.prefix + token % o.per_sample) * dx_row + d;
  }
  int64 a_sample(int row) const { return rows_of_sample * row; }
  double w(int k, int d) const { return value_of(F::kType, weight[size_t(k) * o.dim + d]); }
  double rel(int n) const { return o.relative > 0 ? relative[n] : 1.0; }

  void run() { run_linear<F>(a, blocks); }
};

}  // namespace clustermim::hopper::emulated
