// bfloat16 operands on AMX: 2 x 2 tiles of 16 rows and 16 centroids, 32 values a step.
#include "assign/scan_avx512.h"
#include "assign/tiles_amx.h"

namespace clustermim {
namespace {

constexpr int64_t kStep = 32;
constexpr int64_t kRun = kSquares * kStep;
constexpr int64_t kTileBytes = 1024;
constexpr int64_t kAhead =
    4096;  // bytes of rows asked for in advance: page ends stop the hardware's prefetcher

void pack_rows(const float* x, int64_t stride, int64_t count, const float* centre, float scale,
               int64_t dim, void* packed, int64_t row_bytes, float* norm2, float* error2) {
  const __m512 factor = _mm512_set1_ps(scale);
  const int64_t padded = (dim + kStep - 1) / kStep * kStep;
  for (int64_t r = 0; r < count; ++r, x += stride) {
    uint16_t* out = reinterpret_cast<uint16_t*>(static_cast<char*>(packed) + r * row_bytes);
    double norms = 0.0, errors = 0.0;
    __m512 norm[2] = {}, error[2] = {};
    auto convert = [&](int64_t d, int chain, __mmask16 in) __attribute__((always_inline)) {
      const __m512 value = _mm512_mul_ps(
          _mm512_sub_ps(_mm512_maskz_loadu_ps(in, x + d), _mm512_maskz_loadu_ps(in, centre + d)),
          factor);
      const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(value);
      const __m512 back =
          _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16));
      const __m512 residual = _mm512_sub_ps(value, back);
      norm[chain] = _mm512_fmadd_ps(back, back, norm[chain]);
      error[chain] = _mm512_fmadd_ps(residual, residual, error[chain]);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + d), rounded);
    };
    auto end_run = [&]() __attribute__((always_inline)) {
      norms += _mm512_reduce_add_ps(_mm512_add_ps(norm[0], norm[1]));
      errors += _mm512_reduce_add_ps(_mm512_add_ps(error[0], error[1]));
      norm[0] = norm[1] = error[0] = error[1] = _mm512_setzero_ps();
    };
    int64_t d = 0;
    for (; d + kStep <= dim; d += kStep) {
      if (d > 0 && d % kRun == 0) end_run();
      _mm_prefetch(reinterpret_cast<const char*>(x + d) + kAhead, _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(x + d) + kAhead + 64, _MM_HINT_T0);
      convert(d, 0, 0xffff);
      convert(d + 16, 1, 0xffff);
    }
    for (; d < padded; d += 16) {
      const int64_t left = dim - d;
      convert(d, 0, left >= 16 ? 0xffff : left > 0 ? (1u << left) - 1 : 0);
    }
    end_run();
    norm2[r] = static_cast<float>(norms);
    error2[r] = static_cast<float>(errors);
  }
}

double norm2(const void* packed, int64_t dim) {
  const uint16_t* row = static_cast<const uint16_t*>(packed);
  __m512d sums[2] = {};
  for (int64_t d = 0; d < dim; d += 16) {  // packed rows are padded with zeros
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + d));
    const __m512 value = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(value));
    const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(value, 1));
    sums[0] = _mm512_fmadd_pd(low, low, sums[0]);
    sums[1] = _mm512_fmadd_pd(high, high, sums[1]);
  }
  return _mm512_reduce_add_pd(_mm512_add_pd(sums[0], sums[1]));
}

// [steps][16 pairs of values][16 centroids][2], as tdpbf16ps reads its second operand.
void pack_tile(const void* rows, int64_t row_bytes, int64_t dim, void* tile) {
  uint32_t* out = static_cast<uint32_t*>(tile);
  const int64_t pairs = (dim + kStep - 1) / kStep * 16;
  for (int64_t j = 0; j < 16; ++j) {
    const uint32_t* row =
        reinterpret_cast<const uint32_t*>(static_cast<const char*>(rows) + j * row_bytes);
    for (int64_t k = 0; k < pairs; ++k) out[k * 16 + j] = row[k];
  }
}

void scores(const void* rows, int64_t row_bytes, int64_t, const void* panels, const float* bias,
            int64_t tiles, int64_t dim, float* out, int64_t out_stride, const char* ahead,
            int64_t ahead_bytes) {
  const int64_t steps = (dim + kStep - 1) / kStep, panel_bytes = steps * kTileBytes;
  const int64_t stride = out_stride * 4;
  const char* upper = static_cast<const char*>(rows);
  const char* lower = upper + 16 * row_bytes;
  const char* panel = static_cast<const char*>(panels);
  const int64_t all_steps = (tiles + 1) / 2 * steps;
  const int64_t each = (ahead_bytes + all_steps * 64 - 1) / (all_steps * 64 + 1) * 64;
  const char* ahead_end = ahead + ahead_bytes;
  auto fetch = [&]() __attribute__((always_inline)) {
    for (const char* to = ahead + each; ahead < to && ahead < ahead_end; ahead += 64) {
      _mm_prefetch(ahead, _MM_HINT_T1);
    }
  };
  int64_t t = 0;
  for (; t + 2 <= tiles; t += 2, panel += 2 * panel_bytes) {
    const float* b = bias + t * 16;
    CMIM_TILE_LOAD(0, b, 0);
    CMIM_TILE_LOAD(1, b + 16, 0);
    CMIM_TILE_LOAD(2, b, 0);
    CMIM_TILE_LOAD(3, b + 16, 0);
    for (int64_t s = 0; s < steps; ++s) {
      CMIM_TILE_LOAD(4, upper + s * 64, row_bytes);
      CMIM_TILE_LOAD(6, panel + s * kTileBytes, 64);
      CMIM_TILE_DOT_BF16(0, 4, 6);
      CMIM_TILE_LOAD(7, panel + panel_bytes + s * kTileBytes, 64);
      CMIM_TILE_DOT_BF16(1, 4, 7);
      CMIM_TILE_LOAD(5, lower + s * 64, row_bytes);
      CMIM_TILE_DOT_BF16(2, 5, 6);
      fetch();
      CMIM_TILE_DOT_BF16(3, 5, 7);
    }
    float* o = out + t * 16;
    CMIM_TILE_STORE(0, o, stride);
    CMIM_TILE_STORE(1, o + 16, stride);
    CMIM_TILE_STORE(2, o + 16 * out_stride, stride);
    CMIM_TILE_STORE(3, o + 16 * out_stride + 16, stride);
  }
  if (t < tiles) {
    const float* b = bias + t * 16;
    CMIM_TILE_LOAD(0, b, 0);
    CMIM_TILE_LOAD(2, b, 0);
    for (int64_t s = 0; s < steps; ++s) {
      CMIM_TILE_LOAD(6, panel + s * kTileBytes, 64);
      CMIM_TILE_LOAD(4, upper + s * 64, row_bytes);
      CMIM_TILE_DOT_BF16(0, 4, 6);
      CMIM_TILE_LOAD(5, lower + s * 64, row_bytes);
      CMIM_TILE_DOT_BF16(2, 5, 6);
    }
    float* o = out + t * 16;
    CMIM_TILE_STORE(0, o, stride);
    CMIM_TILE_STORE(2, o + 16 * out_stride, stride);
  }
}

}  // namespace

extern const FilterKernel kFilterAmx;
const FilterKernel kFilterAmx = {Format::bfloat16,
                                 16,
                                 32,
                                 static_cast<int>(kStep),
                                 pack_rows,
                                 norm2,
                                 pack_tile,
                                 enter_tiles,
                                 leave_tiles,
                                 scores,
                                 {row_max, select, squared_distance, nullptr, nullptr}};

}  // namespace clustermim
