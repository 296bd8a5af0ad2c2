#include "assign/scores.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/exact_sum.h"

namespace clustermim {
namespace {

constexpr int kLanes = 8;  // independent partial sums, always in the same order

template <typename Term>
double sum_terms(int64_t dim, Term term) {
  double lanes[kLanes] = {};
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] += term(d + l);
  }
  for (; d < dim; ++d) lanes[d % kLanes] += term(d);
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) +
         ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

template <typename T>
double squared_distance(const T* x, const double* c, int64_t dim) {
  return sum_terms(dim, [&](int64_t d) {
    const double difference = static_cast<double>(x[d]) - c[d];
    return difference * difference;
  });
}

// At most D additions, and per term one subtraction (counted twice: it is squared), one product,
// and for the cosine one division: gamma_{D+8} in units of 2^-53, with 1 % for higher orders.
double relative_error(int64_t dim) {
  return 1.01 * static_cast<double>(dim + 8) * 0x1p-53;
}
// A product that underflows is rounded by up to 2^-1075.
double underflow_error(int64_t dim) {
  return std::ceil(0.5 * static_cast<double>(dim)) * 0x1p-1074;
}

}  // namespace

double scaled_norm(const double* v, int64_t dim) {
  double largest = 0.0;
  for (int64_t d = 0; d < dim; ++d) largest = std::max(largest, std::abs(v[d]));
  if (largest == 0.0) return 0.0;
  int exponent = 0;
  std::frexp(largest, &exponent);
  const double sum = sum_terms(dim, [&](int64_t d) {
    const double scaled = std::ldexp(v[d], -exponent);
    return scaled * scaled;
  });
  return std::ldexp(std::sqrt(sum), exponent);  // may still be infinite or subnormal: not "safe"
}

template <typename T>
Score float64_score(Metric metric, const T* x, const double* c, double norm, int64_t dim) {
  if (metric == Metric::euclidean) {
    const double score = squared_distance(x, c, dim);
    return {score, relative_error(dim) * score + underflow_error(dim)};
  }
  if (metric == Metric::cosine && norm == 0.0) return {0.0, 0.0};
  const double dot = sum_terms(dim, [&](int64_t d) { return static_cast<double>(x[d]) * c[d]; });
  const double absolute =
      sum_terms(dim, [&](int64_t d) { return std::abs(static_cast<double>(x[d]) * c[d]); });
  const double bound = relative_error(dim) * absolute + underflow_error(dim);
  if (metric == Metric::dot) return {-dot, bound};
  if (!norm_is_safe(norm)) return {0.0, std::numeric_limits<double>::infinity()};
  // |c| itself is off by at most (D / 2 + 2) 2^-53; the division rounds once. Quotients that
  // underflow are rounded by up to 2^-1075 each.
  const double cosine = dot / norm;
  return {-cosine, 1.01 * (bound / norm + relative_error(dim) * std::abs(cosine)) + 0x1p-1073};
}

template <typename T>
int exact_compare(Metric metric, const T* x, const double* a, const double* b, int64_t dim) {
  if (metric == Metric::euclidean) {  // |x - a|^2 - |x - b|^2, |x|^2 left out
    ExactSum difference;
    for (int64_t d = 0; d < dim; ++d) {
      if (a[d] == b[d]) continue;
      const double v = x[d];
      difference.add_product(a[d], a[d]);
      difference.subtract_product(b[d], b[d]);
      for (int twice = 0; twice < 2; ++twice) {
        difference.subtract_product(v, a[d]);
        difference.add_product(v, b[d]);
      }
    }
    return difference.sign();
  }
  if (metric == Metric::dot) {
    ExactSum difference;
    for (int64_t d = 0; d < dim; ++d) {
      difference.add_product(x[d], b[d]);
      difference.subtract_product(x[d], a[d]);
    }
    return difference.sign();
  }
  // cos(x, a) > cos(x, b)  <=>  sign(x.a) (x.a)^2 |b|^2 > sign(x.b) (x.b)^2 |a|^2, zero vectors as
  // 0.
  ExactSum dot_a, dot_b, norm_a, norm_b;
  for (int64_t d = 0; d < dim; ++d) {
    dot_a.add_product(x[d], a[d]);
    dot_b.add_product(x[d], b[d]);
    norm_a.add_product(a[d], a[d]);
    norm_b.add_product(b[d], b[d]);
  }
  const int sign_a = dot_a.sign(), sign_b = dot_b.sign();
  if (sign_a != sign_b) return sign_a > sign_b ? -1 : 1;
  if (sign_a == 0) return 0;
  const auto square_a = multiply_integers(dot_a.magnitude(), dot_a.magnitude());
  const auto square_b = multiply_integers(dot_b.magnitude(), dot_b.magnitude());
  const int larger = compare_integers(multiply_integers(square_a, norm_b.magnitude()),
                                      multiply_integers(square_b, norm_a.magnitude()));
  return -larger * sign_a;
}

template <typename T>
double metric_value(Metric metric, const T* x, const double* c, int64_t dim) {
  if (metric == Metric::euclidean) return squared_distance(x, c, dim);
  if (metric == Metric::dot) {
    return sum_terms(dim, [&](int64_t d) { return static_cast<double>(x[d]) * c[d]; });
  }
  double largest_x = 0.0, largest_c = 0.0;
  for (int64_t d = 0; d < dim; ++d) {
    largest_x = std::max(largest_x, std::abs(static_cast<double>(x[d])));
    largest_c = std::max(largest_c, std::abs(c[d]));
  }
  if (largest_x == 0.0 || largest_c == 0.0) return 0.0;
  double dot = 0.0, norm_x = 0.0, norm_c = 0.0;
  for (int64_t d = 0; d < dim; ++d) {
    const double u = static_cast<double>(x[d]) / largest_x, v = c[d] / largest_c;
    dot += u * v;
    norm_x += u * u;
    norm_c += v * v;
  }
  return dot / (std::sqrt(norm_x) * std::sqrt(norm_c));
}

template Score float64_score(Metric, const float*, const double*, double, int64_t);
template Score float64_score(Metric, const double*, const double*, double, int64_t);
template int exact_compare(Metric, const float*, const double*, const double*, int64_t);
template int exact_compare(Metric, const double*, const double*, const double*, int64_t);
template double metric_value(Metric, const float*, const double*, int64_t);
template double metric_value(Metric, const double*, const double*, int64_t);

}  // namespace clustermim
