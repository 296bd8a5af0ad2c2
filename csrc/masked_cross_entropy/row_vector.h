// Vectors of one ISA unit: loads and stores that convert, and exp. Compiler vectors, no intrinsics.
// Everything is in an anonymous namespace: a shared inline helper compiled for one ISA could
// otherwise replace another's.
#pragma once

#include <cstdint>

#include "core/inline.h"

namespace clustermim {
namespace {

enum class Element { f32, f64, f16, bf16 };

// The unit that includes this says how wide its vector registers are. (A template parameter would
// be nicer; GCC 12 does not take one in vector_size where lanes are then indexed.)
constexpr int kBytes = CMIM_VECTOR_BYTES;

struct FloatVector {
  using Scalar = float;
  static constexpr int kLanes = kBytes / 4;
  typedef float Vec __attribute__((vector_size(kBytes)));
  typedef int32_t Int __attribute__((vector_size(kBytes)));
  typedef uint32_t Bits __attribute__((vector_size(kBytes)));
  typedef uint16_t Narrow __attribute__((vector_size(kBytes / 2)));
  static constexpr float kLowest = -__builtin_inff();

  static CMIM_INLINE Vec set(float v) { return v - Vec{}; }

  // exp for x <= 0: 0 below -87.33, where float32 turns subnormal; NaN stays NaN. Cephes' expf: the
  // relative error is at most 1.0e-7 (measured over every float in [-87.33, 0], with and without
  // FMA).
  static CMIM_INLINE Vec exp(Vec x) {
    const Vec low = set(-87.33654f);
    const Vec clamped = x < low ? low : x;
    // 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits
    const Vec shifted = clamped * 1.44269504088896341f + 12582912.0f;
    const Vec n = shifted - 12582912.0f;
    const Vec r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
    Vec p = set(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const Vec power = reinterpret_cast<Vec>((reinterpret_cast<Bits>(shifted) << 23) + (127u << 23));
    return x < low ? Vec{} : p * power;
  }

  // Inf and NaN keep their kind; every binary16 value is exact. Needs subnormals (no DAZ).
  static CMIM_INLINE Vec from_half(Bits h) {
    const Bits magnitude = (h & 0x7fffu) << 13;
    const Vec scaled = reinterpret_cast<Vec>(magnitude) * 0x1p112f;
    const Bits finite = reinterpret_cast<Bits>(scaled), special = magnitude | 0x7f800000u;
    const Bits bits = (h & 0x7c00u) == 0x7c00u ? special : finite;
    return reinterpret_cast<Vec>(bits | ((h & 0x8000u) << 16));
  }

  // To nearest even. Scaling up and down again overflows to Inf what binary16 cannot hold; adding
  // the power of two whose last bit is binary16's last bit then does the rounding.
  static CMIM_INLINE Bits to_half(Vec v) {
    const Bits word = reinterpret_cast<Bits>(v), twice = word + word;
    const Vec magnitude = reinterpret_cast<Vec>(word & 0x7fffffffu);
    const Vec limited = (magnitude * 0x1p112f) * 0x1p-110f;
    const Bits exponent = twice & 0xff000000u;
    const Bits floor_exponent = exponent < 0x71000000u ? Bits{} + 0x71000000u : exponent;
    const Vec rounded = reinterpret_cast<Vec>((floor_exponent >> 1) + 0x07800000u) + limited;
    const Bits bits = reinterpret_cast<Bits>(rounded);
    const Bits value = ((bits >> 13) & 0x7c00u) + (bits & 0x0fffu);
    const Bits nan = Bits{} + 0x7e00u;
    return ((word >> 16) & 0x8000u) | (twice > 0xff000000u ? nan : value);
  }

  static CMIM_INLINE Bits to_bfloat16(Vec v) {
    const Bits word = reinterpret_cast<Bits>(v);
    const Bits rounded = (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
    const Bits nan = Bits{} + 0x7fc0u;
    return (word & 0x7fffffffu) > 0x7f800000u ? nan : rounded;
  }

  template <Element kElement>
  static CMIM_INLINE Vec load(const void* base, int64_t offset) {
    if constexpr (kElement == Element::f32) {
      Vec v;
      __builtin_memcpy(&v, static_cast<const float*>(base) + offset, sizeof(v));
      return v;
    } else {
      Narrow narrow;
      __builtin_memcpy(&narrow, static_cast<const uint16_t*>(base) + offset, sizeof(narrow));
      const Bits bits = __builtin_convertvector(narrow, Bits);
      return kElement == Element::bf16 ? reinterpret_cast<Vec>(bits << 16) : from_half(bits);
    }
  }

  template <Element kElement>
  static CMIM_INLINE void store(void* base, int64_t offset, Vec v) {
    if constexpr (kElement == Element::f32) {
      __builtin_memcpy(static_cast<float*>(base) + offset, &v, sizeof(v));
    } else {
      const Bits bits = kElement == Element::bf16 ? to_bfloat16(v) : to_half(v);
      const Narrow narrow = __builtin_convertvector(bits, Narrow);
      __builtin_memcpy(static_cast<uint16_t*>(base) + offset, &narrow, sizeof(narrow));
    }
  }
};

// float64 is the path of checks, not of training: exp is the C library's.
struct DoubleVector {
  using Scalar = double;
  static constexpr int kLanes = kBytes / 8;
  typedef double Vec __attribute__((vector_size(kBytes)));
  typedef int64_t Int __attribute__((vector_size(kBytes)));
  static constexpr double kLowest = -__builtin_inf();

  static CMIM_INLINE Vec set(double v) { return v - Vec{}; }
  static CMIM_INLINE Vec exp(Vec x) {
    for (int i = 0; i < kLanes; ++i) x[i] = __builtin_exp(x[i]);
    return x;
  }
  template <Element kElement>
  static CMIM_INLINE Vec load(const void* base, int64_t offset) {
    Vec v;
    __builtin_memcpy(&v, static_cast<const double*>(base) + offset, sizeof(v));
    return v;
  }
  template <Element kElement>
  static CMIM_INLINE void store(void* base, int64_t offset, Vec v) {
    __builtin_memcpy(static_cast<double*>(base) + offset, &v, sizeof(v));
  }
};

}  // namespace
}  // namespace clustermim
