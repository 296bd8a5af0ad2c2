// float16 and bfloat16 as bits.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "core/dtype.h"
#include "hopper/types.h"

namespace clustermim::hopper::emulated {

// Rounded once, to nearest, ties to even.
inline uint16_t to_half(double value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double size = std::fabs(value);
  if (std::isnan(value)) return 0x7fff;
  if (size >= 65520) return sign | 0x7c00;
  if (size == 0) return sign;
  const int exponent = std::max(std::ilogb(size), -14);
  const int steps = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
  return static_cast<uint16_t>(sign | (((exponent + 14) << 10) + steps));
}

inline float of_half(uint16_t bits) {
  static const auto table = [] {
    std::array<float, 65536> values;
    for (uint32_t i = 0; i < values.size(); ++i)
      values[i] = to_float(clustermim::Half{uint16_t(i)});
    return values;
  }();
  return table[bits];
}

// Rounded to nearest, ties to even.
inline uint16_t to_bfloat(float value) {
  if (std::isnan(value)) return 0x7fff;
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float of_16_bits(Half type, uint16_t bits) {
  return type == Half::float16 ? of_half(bits) : to_float(BFloat16{bits});
}

}  // namespace clustermim::hopper::emulated
