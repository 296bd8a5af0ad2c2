// Pixels on AMX: 2 x 2 tiles of 16 patches and 16 centroids, 64 values a step.
#include "assign/pixels_avx512.h"
#include "assign/tiles_amx.h"

namespace clustermim {
namespace {

struct Sums {  // [half of the rows][tile][16 rows][16 centroids]
  alignas(64) int32_t of[2][2][16][16];
};

struct Columns {
  const int32_t* start;
  const float *sigma, *bias;
};

// Rows [begin, end) of `width` tiles; `out` is the first row's.
template <int width>
inline void store_scores(const Sums& sums, int64_t begin, int64_t end, const Columns& columns,
                         int64_t tile, float* out, int64_t out_stride) {
  for (int w = 0; w < width; ++w) {
    const int64_t k = (tile + w) * kPixelTile;
    const __m512i start = _mm512_loadu_si512(columns.start + k);
    const __m512 sigma = _mm512_loadu_ps(columns.sigma + k);
    const __m512 bias = _mm512_loadu_ps(columns.bias + k);
    for (int64_t r = begin; r < end; ++r) {
      const __m512i sum = _mm512_load_si512(sums.of[r >> 4][w][r & 15]);
      _mm512_storeu_ps(out + r * out_stride + k, score(sum, start, sigma, bias));
    }
  }
}

void scores(const uint8_t* rows, int64_t row_bytes, int64_t count, const int8_t* panels,
            const int32_t* start, const float* sigma, const float* bias, int64_t tiles,
            int64_t steps, float* out, int64_t out_stride) {
  const Columns columns = {start, sigma, bias};
  const uint8_t* lower = rows + 16 * row_bytes;
  const int64_t panel_bytes = steps * kPixelStepBytes, share = (count + steps - 1) / steps;
  Sums sums[2];
  int which = 0;
  int64_t t = 0;
  for (; t + 2 <= tiles; t += 2, panels += 2 * panel_bytes, which ^= 1) {
    const Sums& before = sums[which ^ 1];
    CMIM_TILE_ZERO(0);
    CMIM_TILE_ZERO(1);
    CMIM_TILE_ZERO(2);
    CMIM_TILE_ZERO(3);
    for (int64_t s = 0, done = 0; s < steps; ++s) {
      CMIM_TILE_LOAD(4, rows + s * 64, row_bytes);
      CMIM_TILE_LOAD(6, panels + s * kPixelStepBytes, 64);
      CMIM_TILE_DOT_U8S8(0, 4, 6);
      CMIM_TILE_LOAD(7, panels + panel_bytes + s * kPixelStepBytes, 64);
      CMIM_TILE_DOT_U8S8(1, 4, 7);
      CMIM_TILE_LOAD(5, lower + s * 64, row_bytes);
      CMIM_TILE_DOT_U8S8(2, 5, 6);
      CMIM_TILE_DOT_U8S8(3, 5, 7);
      // The sums of the tiles before become scores between these ones' steps.
      const int64_t end = count - done < share ? count : done + share;
      if (t > 0) store_scores<2>(before, done, end, columns, t - 2, out, out_stride);
      done = end;
    }
    CMIM_TILE_STORE(0, sums[which].of[0][0], 64);
    CMIM_TILE_STORE(1, sums[which].of[0][1], 64);
    CMIM_TILE_STORE(2, sums[which].of[1][0], 64);
    CMIM_TILE_STORE(3, sums[which].of[1][1], 64);
  }
  if (t < tiles) {
    CMIM_TILE_ZERO(0);
    CMIM_TILE_ZERO(2);
    for (int64_t s = 0; s < steps; ++s) {
      CMIM_TILE_LOAD(6, panels + s * kPixelStepBytes, 64);
      CMIM_TILE_LOAD(4, rows + s * 64, row_bytes);
      CMIM_TILE_DOT_U8S8(0, 4, 6);
      CMIM_TILE_LOAD(5, lower + s * 64, row_bytes);
      CMIM_TILE_DOT_U8S8(2, 5, 6);
    }
    CMIM_TILE_STORE(0, sums[which].of[0][0], 64);
    CMIM_TILE_STORE(2, sums[which].of[1][0], 64);
  }
  if (t > 0) store_scores<2>(sums[which ^ 1], 0, count, columns, t - 2, out, out_stride);
  if (t < tiles) store_scores<1>(sums[which], 0, count, columns, t, out, out_stride);
}

}  // namespace

extern const PixelKernel kPixelsAmx;
const PixelKernel kPixelsAmx = {32,     pack_rows, norms,  enter_tiles, leave_tiles,
                                scores, dot,       centre, quantise};

}  // namespace clustermim
