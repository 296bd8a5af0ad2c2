// Pixels with AVX-512 VNNI: 12 patches and two tiles of 16 centroids in registers.
#include "assign/pixels_avx512.h"

namespace clustermim {
namespace {

constexpr int kRows = 12;
constexpr int64_t kGroups = 2;  // of kRows, past tiles that stay in the first-level cache

void nothing() {}

// In place: GCC 12 copies and spills the sums of the intrinsic.
inline __attribute__((always_inline)) void add_dot(__m512i& sum, __m512i pixels,
                                                   __m512i centroids) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(pixels), "v"(centroids));
}

template <int width>
inline void tile_scores(const uint8_t* rows, int64_t row_bytes, const int8_t* panel,
                        const int32_t* start, const float* sigma, const float* bias, int64_t steps,
                        float* out, int64_t out_stride) {
  __m512i left[kRows], right[kRows];  // of the two tiles; each index below is a constant
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    left[r] = _mm512_loadu_si512(start);
    if (width == 2) right[r] = _mm512_loadu_si512(start + kPixelTile);
  }
  const int64_t quads = steps * kPixelStep / 4, panel_bytes = steps * kPixelStepBytes;
  for (int64_t quad = 0; quad < quads; ++quad, panel += 64, rows += 4) {
    const __m512i one = _mm512_load_si512(panel);
    const __m512i two = width == 2 ? _mm512_load_si512(panel + panel_bytes) : one;
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      int32_t four;
      __builtin_memcpy(&four, rows + r * row_bytes, sizeof(four));
      const __m512i pixels = _mm512_set1_epi32(four);
      add_dot(left[r], pixels, one);
      if (width == 2) add_dot(right[r], pixels, two);
    }
  }
  const auto store = [&](const __m512i& sum, int r, int tile) __attribute__((always_inline)) {
    const int64_t k = tile * kPixelTile;
    _mm512_storeu_ps(
        out + r * out_stride + k,
        score(sum, _mm512_setzero_si512(), _mm512_loadu_ps(sigma + k), _mm512_loadu_ps(bias + k)));
  };
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    store(left[r], r, 0);
    if (width == 2) store(right[r], r, 1);
  }
}

void scores(const uint8_t* rows, int64_t row_bytes, int64_t count, const int8_t* panels,
            const int32_t* start, const float* sigma, const float* bias, int64_t tiles,
            int64_t steps, float* out, int64_t out_stride) {
  for (int64_t t = 0; t < tiles; t += 2, panels += 2 * steps * kPixelStepBytes) {
    const auto some = t + 2 <= tiles ? tile_scores<2> : tile_scores<1>;
    const int64_t k = t * kPixelTile;
    for (int64_t r = 0; r < count; r += kRows) {
      some(rows + r * row_bytes, row_bytes, panels, start + k, sigma + k, bias + k, steps,
           out + r * out_stride + k, out_stride);
    }
  }
}

}  // namespace

extern const PixelKernel kPixelsVnni;
const PixelKernel kPixelsVnni = {kRows * kGroups, pack_rows, norms,  nothing, nothing,
                                 scores,          dot,       centre, quantise};

}  // namespace clustermim
