// The passes in plain loops, which the compiler vectorises for the unit that includes them.
#pragma once

#include <cstdint>

#include "core/inline.h"
#include "resized_crop/resample.h"

namespace clustermim {
namespace {

CMIM_INLINE uint8_t clamp_byte(int32_t value) {
  return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

// Outputs begin .. end of a line; kTaps of them each, or axis.taps where it is 0.
template <int kTaps>
CMIM_INLINE void plain_line(const uint8_t* line, const ResampleAxis& axis, int64_t begin,
                            int64_t end, uint8_t* out) {
  const int taps = kTaps ? kTaps : axis.taps;
  for (int64_t x = begin; x < end; ++x) {
    const uint8_t* from = line + axis.first[x];
    const int16_t* weights = axis.weights + x * taps;
    int32_t sum = 1 << (axis.shift - 1);
    for (int t = 0; t < taps; ++t) sum += weights[t] * from[t];
    out[x] = clamp_byte(sum >> axis.shift);
  }
}

CMIM_INLINE void plain_part(const uint8_t* line, const ResampleAxis& axis, int64_t begin,
                            int64_t end, uint8_t* out) {
  switch (axis.taps) {
    case 4: return plain_line<4>(line, axis, begin, end, out);
    case 6: return plain_line<6>(line, axis, begin, end, out);
    case 8: return plain_line<8>(line, axis, begin, end, out);
    default: return plain_line<0>(line, axis, begin, end, out);
  }
}

void plain_rows(const uint8_t* in, int64_t stride, int64_t rows, int64_t, const ResampleAxis& axis,
                uint8_t* out, int64_t out_stride) {
  for (int64_t r = 0; r < rows; ++r) {
    plain_part(in + r * stride, axis, 0, axis.outputs, out + r * out_stride);
  }
}

void plain_columns(const uint8_t* in, int64_t stride, int64_t width, const ResampleAxis& axis,
                   uint8_t* out, int64_t out_stride) {
  constexpr int64_t kBlock = 64;
  int32_t sums[kBlock];
  for (int64_t y = 0; y < axis.outputs; ++y) {
    const uint8_t* lines = in + axis.first[y] * stride;
    const int16_t* weights = axis.weights + y * axis.taps;
    for (int64_t x = 0; x < width; x += kBlock) {
      // The lines are padded: whole blocks, and only `count` of them are kept.
      const int64_t count = width - x < kBlock ? width - x : kBlock;
      for (int64_t i = 0; i < kBlock; ++i) sums[i] = 1 << (axis.shift - 1);
      for (int t = 0; t < axis.taps; ++t) {
        const uint8_t* line = lines + t * stride + x;
        const int32_t weight = weights[t];
        for (int64_t i = 0; i < kBlock; ++i) sums[i] += weight * line[i];
      }
      for (int64_t i = 0; i < count; ++i) {
        out[y * out_stride + x + i] = clamp_byte(sums[i] >> axis.shift);
      }
    }
  }
}

}  // namespace
}  // namespace clustermim
