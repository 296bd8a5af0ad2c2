#include "core/exact_sum.h"

#include <algorithm>
#include <bit>

namespace clustermim {
namespace {

using uint128 = unsigned __int128;

// |v| = mantissa * 2^(exponent - 1074), exponent >= 0.
struct Decomposed {
  uint64_t mantissa;
  int exponent;
  bool negative;
};

Decomposed decompose(double v) {
  const uint64_t bits = std::bit_cast<uint64_t>(v);
  const int biased = static_cast<int>((bits >> 52) & 0x7ff);
  const uint64_t fraction = bits & ((uint64_t{1} << 52) - 1);
  if (biased == 0) return {fraction, 0, (bits >> 63) != 0};
  return {fraction | (uint64_t{1} << 52), biased - 1, (bits >> 63) != 0};
}

}  // namespace

void ExactSum::accumulate(double a, double b, bool negate) {
  const Decomposed da = decompose(a), db = decompose(b);
  if (da.mantissa == 0 || db.mantissa == 0) return;
  const uint128 product = static_cast<uint128>(da.mantissa) * db.mantissa;
  const int position = da.exponent + db.exponent;
  const int word = position / 64, shift = position % 64;
  uint64_t value[3] = {static_cast<uint64_t>(product << shift),
                       static_cast<uint64_t>((product << shift) >> 64), 0};
  if (shift > 0) value[2] = static_cast<uint64_t>(product >> (128 - shift));
  if (da.negative != db.negative ? !negate : negate) {
    subtract_at(word, value);
  } else {
    add_at(word, value);
  }
}

void ExactSum::add_at(int word, const uint64_t (&value)[3]) {
  uint64_t carry = 0;
  for (int i = 0; word + i < kWords && (i < 3 || carry); ++i) {
    const uint128 sum = static_cast<uint128>(words_[word + i]) + (i < 3 ? value[i] : 0) + carry;
    words_[word + i] = static_cast<uint64_t>(sum);
    carry = static_cast<uint64_t>(sum >> 64);
  }
}

void ExactSum::subtract_at(int word, const uint64_t (&value)[3]) {
  uint64_t borrow = 0;
  for (int i = 0; word + i < kWords && (i < 3 || borrow); ++i) {
    const uint128 difference =
        static_cast<uint128>(words_[word + i]) - (i < 3 ? value[i] : 0) - borrow;
    words_[word + i] = static_cast<uint64_t>(difference);
    borrow = static_cast<uint64_t>(difference >> 64) ? 1 : 0;
  }
}

int ExactSum::sign() const {
  if (words_[kWords - 1] >> 63) return -1;
  return std::any_of(words_, words_ + kWords, [](uint64_t w) { return w != 0; }) ? 1 : 0;
}

std::vector<uint64_t> ExactSum::magnitude() const {
  std::vector<uint64_t> out(words_, words_ + kWords);
  if (sign() < 0) {
    uint64_t carry = 1;
    for (uint64_t& w : out) {
      w = ~w + carry;
      carry = carry && w == 0;
    }
  }
  while (!out.empty() && out.back() == 0) out.pop_back();
  return out;
}

int compare_integers(const std::vector<uint64_t>& a, const std::vector<uint64_t>& b) {
  const size_t length = std::max(a.size(), b.size());
  for (size_t i = length; i-- > 0;) {
    const uint64_t wa = i < a.size() ? a[i] : 0, wb = i < b.size() ? b[i] : 0;
    if (wa != wb) return wa < wb ? -1 : 1;
  }
  return 0;
}

std::vector<uint64_t> multiply_integers(const std::vector<uint64_t>& a,
                                        const std::vector<uint64_t>& b) {
  std::vector<uint64_t> out(a.size() + b.size(), 0);
  for (size_t i = 0; i < a.size(); ++i) {
    uint64_t carry = 0;
    for (size_t j = 0; j < b.size(); ++j) {
      const uint128 t = static_cast<uint128>(a[i]) * b[j] + out[i + j] + carry;
      out[i + j] = static_cast<uint64_t>(t);
      carry = static_cast<uint64_t>(t >> 64);
    }
    out[i + b.size()] = carry;
  }
  return out;
}

}  // namespace clustermim
