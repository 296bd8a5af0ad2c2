#include "core/exact_sum.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>
#include <vector>

#include "check.h"

using clustermim::compare_integers;
using clustermim::ExactSum;
using clustermim::multiply_integers;

namespace {

void cancels_to_zero_at_any_magnitude() {
  for (double big : {0x1p-1074, 0x1p-600, 1.0, 0x1.fffffffffffffp1023}) {
    ExactSum sum;
    sum.add_product(big, big);
    CHECK(sum.sign() == 1);
    sum.add_product(0x1p-1074, 0x1p-1074);  // the smallest product there is
    sum.subtract_product(big, big);
    CHECK(sum.sign() == 1);
    sum.add_product(-0x1p-1074, 0x1p-1074);
    CHECK(sum.sign() == 0);
    sum.subtract_product(0x1p-1074, 0x1p-1074);
    CHECK(sum.sign() == -1);
  }
}

void order_does_not_matter() {
  std::mt19937_64 random(1);
  std::uniform_int_distribution<int> exponent(-1000, 1000);
  std::normal_distribution<double> normal;
  ExactSum sum;
  std::vector<std::pair<double, double>> terms;
  for (int i = 0; i < 500; ++i) {
    terms.emplace_back(std::ldexp(normal(random), exponent(random)),
                       std::ldexp(normal(random), exponent(random)));
    sum.add_product(terms.back().first, terms.back().second);
  }
  std::shuffle(terms.begin(), terms.end(), random);
  for (const auto& [a, b] : terms) sum.add_product(-a, b);
  CHECK(sum.sign() == 0);
  CHECK(sum.magnitude().empty());
}

void agrees_with_128_bit_integers() {
  std::mt19937_64 random(2);
  std::uniform_int_distribution<int64_t> value(-(int64_t{1} << 52), int64_t{1} << 52);
  for (int repeat = 0; repeat < 100; ++repeat) {
    ExactSum sum;
    __int128 truth = 0;
    for (int i = 0; i < 20; ++i) {
      const int64_t a = value(random), b = value(random);
      truth += static_cast<__int128>(a) * b;
      sum.add_product(static_cast<double>(a), static_cast<double>(b));
    }
    CHECK(sum.sign() == (truth > 0) - (truth < 0));
  }
}

void multiplies_and_compares_integers() {
  const std::vector<uint64_t> max = {~uint64_t{0}, ~uint64_t{0}};
  const std::vector<uint64_t> square = multiply_integers(max, max);
  const std::vector<uint64_t> truth = {1, 0, ~uint64_t{0} - 1, ~uint64_t{0}};
  CHECK(square == truth);  // (2^128 - 1)^2 = 2^256 - 2^129 + 1
  CHECK(compare_integers(square, truth) == 0);
  CHECK(compare_integers(max, square) == -1);
  CHECK(compare_integers({0, 1}, {5}) == 1);
  CHECK(compare_integers({7, 0, 0}, {7}) == 0);
}

}  // namespace

int main() {
  cancels_to_zero_at_any_magnitude();
  order_does_not_matter();
  agrees_with_128_bit_integers();
  multiplies_and_compares_integers();
  return 0;
}
