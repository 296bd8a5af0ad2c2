// Holds an answer of the linear loss on Hopper against float64.
#pragma once

#include "hopper_linear_problem.h"

namespace clustermim::hopper::emulated {

// Of one counted token.
struct TrueRow {
  bool known = true;
  double top, total, loss;
  int best;
  double bound;  // of a logit's error, beside the largest
  std::vector<double> p;
};

template <class F>
TrueRow true_row(const LinearProblem<F>& p, int n) {
  const int K = p.o.classes;
  const int64 token = p.rows[n], target = p.targets[token];
  TrueRow row;
  std::vector<double> z(K);
  double size = 0;
  for (int k = 0; k < K; ++k) {
    double magnitude = std::isinf(p.bias[k]) ? 0.0 : std::abs(p.bias[k]);
    z[k] = p.bias[k];
    for (int d = 0; d < p.o.dim; ++d) {
      const double term = value_of(F::kType, p.x[p.x_at(token, d)]) * p.w(k, d);
      z[k] += term, magnitude += std::abs(term);
    }
    size = std::max(size, magnitude);
  }
  row.bound = (p.o.dim + 4) * 0x1p-24 * size;
  row.top = -std::numeric_limits<double>::infinity(), row.total = 0, row.best = 0;
  for (int k = 0; k < K; ++k)
    if (z[k] > row.top) row.top = z[k], row.best = k;
  double below = 0;
  for (int k = 0; k < K; ++k) {
    row.p.push_back(std::exp(z[k] - row.top));
    row.total += row.p[k], below += row.top - z[k];
  }
  row.known = target >= 0 && target < K && row.total == row.total &&
              !(p.o.wrong && p.wrong[token / p.o.per_sample]);
  for (double& v : row.p) v /= row.total;
  row.loss = std::log(row.total);
  if (row.known)
    row.loss += (p.o.smoothing < 1 ? (1 - double(p.o.smoothing)) * (row.top - z[target]) : 0.0) +
                (p.o.smoothing > 0 ? p.o.smoothing / K * below : 0.0);
  return row;
}

inline bool near(double value, double truth, double bound) {
  if (value == truth || std::abs(value - truth) <= bound) return true;
  std::fprintf(stderr, "%.9g is not within %.3g of %.9g\n", value, bound, truth);
  return false;
}

template <class F>
void check_losses(const LinearProblem<F>& p, const std::vector<TrueRow>& truth) {
  double sum = 0, bound = 0;
  bool all_known = true;
  int64 correct = 0, ambiguous = 0;
  for (int n = 0; n < p.counted; ++n) {
    const TrueRow& row = truth[n];
    const int64 token = p.rows[n];
    const double weight = p.o.weighted ? p.token_weight[token] : 1.0;
    CHECK(std::isnan(p.stats[n]) == !row.known);
    if (p.o.each) CHECK(std::isnan(p.each[token]) == !row.known);
    all_known &= row.known;
    if (!row.known) continue;
    const double relative = 4 * row.bound + 64 * 0x1p-24;  // of a sum of exponentials
    CHECK(near(p.stats[n], row.top, row.bound + 0x1p-23 * std::abs(row.top)));
    CHECK(near(p.stats[p.tokens + n], row.total, relative * row.total));
    const double error = 2 * row.bound + relative + 16 * 0x1p-24 * (1 + std::abs(row.loss));
    if (p.o.each) CHECK(near(p.each[token], weight * row.loss, error));
    sum += weight * row.loss, bound += weight * error;
    double second = 0;
    for (int k = 0; k < p.o.classes; ++k)
      if (k != row.best) second = std::max(second, row.p[k]);
    if (second * row.total > std::exp(-4 * row.bound)) ++ambiguous;
    correct += row.best == p.targets[token];
  }
  double found = 0;
  for (double s : p.sums) found += s;
  if (!p.o.each) CHECK(all_known ? near(found, sum, bound) : std::isnan(found));
  for (int n = static_cast<int>(p.counted); n < p.tokens; ++n) {
    CHECK(p.stats[n] == 0 && p.stats[p.tokens + n] == 0);
    if (p.o.each) CHECK(p.each[p.rows[n]] == 0);
  }
  if (!p.o.metrics) return;
  CHECK(std::abs(p.correct - correct) <= ambiguous);
  std::vector<int64> histogram(p.o.classes);
  for (const TrueRow& row : truth) histogram[row.best] += row.known;
  for (int k = 0; k < p.o.classes; ++k) CHECK(std::abs(p.histogram[k] - histogram[k]) <= ambiguous);
}

// dZ of a token but for smoothing's part, and how far a rounded one may be from it.
struct TrueDz {
  std::vector<double> value, bound, unrounded;
};

template <class F>
TrueDz dz_of(const LinearProblem<F>& p, const TrueRow& row, int n) {
  const double unit = F::kType == Half::float16 ? 0x1p-11 : 0x1p-8;
  const double tiny = F::kType == Half::float16 ? 0x1p-25 / F::kShift : 0x1p-126;
  TrueDz s;
  for (int k = 0; k < p.o.classes; ++k) {
    const bool own = k == p.targets[p.rows[n]];
    const double hard = own ? (1 - double(p.o.smoothing)) * p.rel(n) : 0.0;
    const double value = row.p[k] * p.rel(n) - hard;
    const double error =
        (6 * row.bound + 128 * 0x1p-24) * row.p[k] * p.rel(n) + 4 * 0x1p-24 * std::abs(hard);
    s.value.push_back(value), s.unrounded.push_back(error);
    s.bound.push_back(error + (std::abs(value) + error) * unit + tiny);
  }
  return s;
}

template <class F>
void check_inputs(const LinearProblem<F>& p, const std::vector<TrueRow>& truth) {
  const double unit = F::kType == Half::float16 ? 0x1p-11 : 0x1p-8;
  const double tiny = F::kType == Half::float16 ? 0x1p-25 : 0x1p-126;
  const auto at = [&](size_t i) { return value_of(F::kType, p.dx[i]); };
  for (int n = 0; n < p.counted; ++n) {
    const TrueDz s = dz_of(p, truth[n], n);
    for (int d = 0; d < p.o.dim; ++d) {
      const double value = at(p.dx_at(p.rows[n], d));
      if (!truth[n].known) {
        CHECK(std::isnan(value));
        continue;
      }
      double sum = -p.rel(n) * p.direction[d], bound = 4 * 0x1p-24 * std::abs(sum);
      for (int k = 0; k < p.o.classes; ++k) {
        sum += s.value[k] * p.w(k, d);
        bound += s.bound[k] * std::abs(p.w(k, d)) +
                 (p.o.classes + 8) * 0x1p-24 * std::abs(s.value[k] * p.w(k, d));
      }
      bound *= p.factor, sum *= p.factor;
      CHECK(near(value, sum, bound + (std::abs(sum) + bound) * unit + tiny));
    }
  }
  const uint16 rest = p.o.again == 0 ? 0 : 0x7f7f;  // made again: these are there
  for (int n = static_cast<int>(p.counted); n < p.tokens; ++n)
    for (int d = 0; d < p.o.dim; ++d) CHECK(p.dx[p.dx_at(p.rows[n], d)] == rest);
  for (int s = 0; s < p.o.samples; ++s)
    for (int row = 0; row < p.rows_of_sample; ++row)
      for (int d = 0; d < p.dx_row; ++d) {
        const uint16 value = p.dx[s * p.a_sample(p.dx_row) + row * p.dx_row + d];
        if (d >= p.o.dim)
          CHECK(value == 0x7f7f);  // beside the rows nothing is written
        else if (row < p.o.prefix)
          CHECK(value == 0);
      }
}

template <class F>
void check_weight_and_bias(const LinearProblem<F>& p, const std::vector<TrueRow>& truth) {
  const int K = p.o.classes, D = p.o.dim;
  std::vector<double> dw(size_t(K) * D), bound(dw.size()), db(K), db_bound(K);
  bool all_known = true;
  for (int n = 0; n < p.counted; ++n) {
    all_known &= truth[n].known;
    const TrueDz s = dz_of(p, truth[n], n);
    for (int k = 0; k < K; ++k) {
      db[k] += s.value[k];
      db_bound[k] += s.unrounded[k] + (p.counted + 8) * 0x1p-24 * std::abs(s.value[k]);
      for (int d = 0; d < D; ++d) {
        const double x = value_of(F::kType, p.x[p.x_at(p.rows[n], d)]);
        dw[size_t(k) * D + d] += s.value[k] * x;
        bound[size_t(k) * D + d] +=
            (s.bound[k] + (p.counted + 8) * 0x1p-24 * std::abs(s.value[k])) * std::abs(x);
      }
    }
  }
  if (F::kWeight)
    for (size_t i = 0; i < dw.size(); ++i) {
      double found = 0;
      for (int c = 0; c < p.o.clusters; ++c) found += p.parts[c * dw.size() + i];
      CHECK(all_known ? near(found, p.factor * dw[i], p.factor * bound[i] * 1.001)
                      : std::isnan(found));
    }
  if (p.o.db)
    for (int k = 0; k < K; ++k) {
      double found = 0;
      for (int b = 0; b < p.blocks; ++b) found += p.db[b * K + k];
      CHECK(all_known ? near(found, db[k], db_bound[k] * 1.001) : std::isnan(found));
    }
}

// run(): fills p with the answer.
template <class F, class Run>
void check_answer(LinearProblem<F>& p, const Run& run) {
  std::vector<TrueRow> truth;
  for (int n = 0; n < p.counted; ++n) truth.push_back(true_row(p, n));
  if (p.o.backward)
    for (int n = 0; n < p.counted; ++n)
      p.stats[n] = truth[n].known ? float(truth[n].top) : std::numeric_limits<float>::quiet_NaN();
  run();
  if (!p.o.backward) check_losses(p, truth);
  if (F::kInput) check_inputs(p, truth);
  check_weight_and_bias(p, truth);
}

template <class F>
void check_linear(const LinearOptions& options) {
  LinearProblem<F> p(options);
  check_answer(p, [&] { p.run(); });
}

}  // namespace clustermim::hopper::emulated
