// Vectors of float64 values of one ISA unit, which defines CMIM_VECTOR_BYTES first. Everything is
// in an anonymous namespace: a shared inline helper compiled for one ISA could replace another's.
#pragma once

#include <cstdint>

#include "core/inline.h"

namespace clustermim {
namespace {

constexpr int kLanes = CMIM_VECTOR_BYTES / 8;

typedef double Vec __attribute__((vector_size(CMIM_VECTOR_BYTES)));
typedef double UnalignedVec __attribute__((vector_size(CMIM_VECTOR_BYTES), aligned(8)));
typedef uint64_t IntVec __attribute__((vector_size(CMIM_VECTOR_BYTES)));
typedef float FloatVec __attribute__((vector_size(CMIM_VECTOR_BYTES / 2)));
typedef float UnalignedFloatVec __attribute__((vector_size(CMIM_VECTOR_BYTES / 2), aligned(4)));

CMIM_INLINE Vec load(const double* p) {
  return *reinterpret_cast<const UnalignedVec*>(p);
}
// Spelt out: GCC 12 makes one conversion of this and several instructions of a convertvector.
CMIM_INLINE Vec load(const float* p) {
  const FloatVec f = *reinterpret_cast<const UnalignedFloatVec*>(p);
#if CMIM_VECTOR_BYTES == 64
  return Vec{f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7]};
#elif CMIM_VECTOR_BYTES == 32
  return Vec{f[0], f[1], f[2], f[3]};
#else
  return Vec{f[0], f[1]};
#endif
}

// The upper half is added to the lower until one lane is left.
CMIM_INLINE double sum(Vec v) {
  IntVec lane;
  for (int l = 0; l < kLanes; ++l) lane[l] = l;
#pragma GCC unroll 4
  for (int half = kLanes / 2; half > 0; half /= 2) v += __builtin_shuffle(v, lane ^ half);
  return v[0];
}

}  // namespace
}  // namespace clustermim
