// One pass of a separable resize, for each instruction set. Plain pointers and no standard headers,
// so that a unit compiled for one ISA can share nothing with another.
#pragma once

#include <cstdint>

namespace clustermim {

// Output x is (sum over t of weights[x * taps + t] * in[first[x] + t] + 2^(shift - 1)) >> shift,
// clamped to 0..255; first[x] + taps <= number of inputs.
struct ResampleAxis {
  const int32_t* first;
  const int16_t* weights;
  int64_t outputs;
  int taps;  // even, but where there are fewer inputs than that
  int shift;
};

constexpr int64_t kResamplePad = 64;  // bytes behind each line between the passes, readable

struct ResampleKernels {
  // rows lines of `width` bytes, `stride` apart -> lines of axis.outputs bytes, `out_stride` apart.
  void (*along_rows)(const uint8_t* in, int64_t stride, int64_t rows, int64_t width,
                     const ResampleAxis& axis, uint8_t* out, int64_t out_stride);
  // Lines of `width` bytes, `stride` apart and padded -> axis.outputs lines, `out_stride` apart.
  void (*along_columns)(const uint8_t* in, int64_t stride, int64_t width, const ResampleAxis& axis,
                        uint8_t* out, int64_t out_stride);
};

extern const ResampleKernels kResampleGeneric;
#if defined(__x86_64__)
extern const ResampleKernels kResampleAvx2;
extern const ResampleKernels kResampleAvx512;
#endif

}  // namespace clustermim
