// Element types of the tensors that the core reads. clustermim_fast/ops/_backend.py lists the same
// codes.
#pragma once

#include <bit>
#include <cstdint>

namespace clustermim {

enum class DType : int { f32 = 0, f64 = 1, f16 = 2, bf16 = 3, u8 = 4 };

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline float to_float(float v) {
  return v;
}
inline float to_float(double v) {
  return static_cast<float>(v);
}
inline float to_float(uint8_t v) {
  return static_cast<float>(v);
}
inline float to_float(BFloat16 v) {
  return std::bit_cast<float>(static_cast<uint32_t>(v.bits) << 16);
}
// Exact: every binary16 value is a binary32 value. Branches only for subnormals and Inf/NaN.
inline float to_float(Half v) {
  const uint32_t sign = static_cast<uint32_t>(v.bits & 0x8000u) << 16;
  const uint32_t exponent = (v.bits >> 10) & 0x1fu;
  const uint32_t mantissa = v.bits & 0x3ffu;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const uint32_t rebiased = exponent == 31 ? 255u : exponent + 112u;
  return std::bit_cast<float>(sign | (rebiased << 23) | (mantissa << 13));
}

inline double to_double(double v) {
  return v;
}
template <typename T>
inline double to_double(T v) {
  return static_cast<double>(to_float(v));
}

// Calls visitor(T{}) with the C++ type of `dtype`; returns false for an unknown code.
template <typename Visitor>
bool visit_dtype(DType dtype, Visitor&& visitor) {
  switch (dtype) {
    case DType::f32: visitor(float{}); return true;
    case DType::f64: visitor(double{}); return true;
    case DType::f16: visitor(Half{}); return true;
    case DType::bf16: visitor(BFloat16{}); return true;
    case DType::u8: visitor(uint8_t{}); return true;
  }
  return false;
}

}  // namespace clustermim
