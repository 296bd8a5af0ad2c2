// Exact arithmetic on float64 values: the tier that decides what rounding leaves open.
#pragma once

#include <cstdint>
#include <vector>

namespace clustermim {

// A fixed-point number wide enough for any sum of up to 2^60 products of two finite doubles:
// bits 2^-2148 (the product of two smallest subnormals) to 2^2048, and room for carries.
class ExactSum {
 public:
  void add_product(double a, double b) { accumulate(a, b, false); }
  void subtract_product(double a, double b) { accumulate(a, b, true); }
  int sign() const;  // -1, 0 or 1
  // |this| as a non-negative integer in units of 2^-2148, least significant word first.
  std::vector<uint64_t> magnitude() const;

 private:
  static constexpr int kWords = 67;  // 67 * 64 = 4288 > 2148 + 2048 + 60 + sign
  void accumulate(double a, double b, bool negate);
  void add_at(int word, const uint64_t (&value)[3]);
  void subtract_at(int word, const uint64_t (&value)[3]);
  uint64_t words_[kWords] = {};  // two's complement
};

// Sign of a - b for non-negative integers, least significant word first.
int compare_integers(const std::vector<uint64_t>& a, const std::vector<uint64_t>& b);
std::vector<uint64_t> multiply_integers(const std::vector<uint64_t>& a,
                                        const std::vector<uint64_t>& b);

}  // namespace clustermim
