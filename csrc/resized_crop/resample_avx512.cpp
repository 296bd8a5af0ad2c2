#include <immintrin.h>

#include "resized_crop/resample_plain.h"

namespace clustermim {
namespace {

constexpr int kMostPairs = 6;  // of taps, whose places and weights stay in registers

// Sixteen neighbouring outputs of a line: the bytes they need, and which of them.
struct Block {
  int64_t base, x;  // first byte read, first output
  __mmask32 load[2];
  __mmask16 store;
  __m512i places[kMostPairs], weights[kMostPairs];
};

// False where the outputs need more than `tables` times 32 bytes.
CMIM_INLINE bool prepare(const ResampleAxis& axis, int64_t width, int64_t x, int tables,
                         Block* block) {
  const int64_t count = axis.outputs - x < 16 ? axis.outputs - x : 16;
  int64_t low = axis.first[x], high = low;
  for (int64_t i = 1; i < count; ++i) {  // mirrored ones descend
    const int64_t first = axis.first[x + i];
    low = first < low ? first : low;
    high = first > high ? first : high;
  }
  if (high + axis.taps - low > 32 * tables) return false;
  block->base = low;
  block->x = x;
  block->store = static_cast<__mmask16>((1u << count) - 1);
  for (int table = 0; table < 2; ++table) {
    const int64_t left = width - low - 32 * table;
    block->load[table] = left >= 32  ? 0xffffffffu
                         : left <= 0 ? 0u
                                     : static_cast<__mmask32>((1ull << left) - 1);
  }
  alignas(64) int16_t places[32], weights[32];
  for (int pair = 0; 2 * pair < axis.taps; ++pair) {
    for (int64_t i = 0; i < 32; ++i) {
      const int64_t output = x + i / 2, tap = 2 * pair + i % 2;
      const bool there = i / 2 < count;
      places[i] = there ? static_cast<int16_t>(axis.first[output] - low + tap) : int16_t{0};
      weights[i] = there ? axis.weights[output * axis.taps + tap] : int16_t{0};
    }
    block->places[pair] = _mm512_load_si512(places);
    block->weights[pair] = _mm512_load_si512(weights);
  }
  return true;
}

template <int kPairs, int kTables>
CMIM_INLINE void block_rows(const uint8_t* in, int64_t stride, int64_t rows, const Block& block,
                            int shift, uint8_t* out, int64_t out_stride) {
  __m512i places[kPairs], weights[kPairs];
  for (int pair = 0; pair < kPairs; ++pair) {
    places[pair] = block.places[pair];
    weights[pair] = block.weights[pair];
  }
  const __m512i half = _mm512_set1_epi32(1 << (shift - 1)), zero = _mm512_setzero_si512();
  const __m128i shifts = _mm_cvtsi32_si128(shift);
  for (int64_t r = 0; r < rows; ++r) {
    const uint8_t* line = in + r * stride + block.base;
    const __m512i low = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(block.load[0], line));
    __m512i high = zero;
    if (kTables == 2) {
      high = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(block.load[1], line + 32));
    }
    __m512i sum = half;
    for (int pair = 0; pair < kPairs; ++pair) {
      const __m512i pixels = kTables == 2 ? _mm512_permutex2var_epi16(low, places[pair], high)
                                          : _mm512_permutexvar_epi16(places[pair], low);
      sum = _mm512_add_epi32(sum, _mm512_madd_epi16(pixels, weights[pair]));
    }
    sum = _mm512_max_epi32(_mm512_sra_epi32(sum, shifts), zero);
    _mm512_mask_cvtusepi32_storeu_epi8(out + r * out_stride + block.x, block.store, sum);
  }
}

template <int kPairs>
CMIM_INLINE void all_blocks(const uint8_t* in, int64_t stride, int64_t rows, int64_t width,
                            const ResampleAxis& axis, uint8_t* out, int64_t out_stride) {
  for (int64_t x = 0; x < axis.outputs; x += 16) {
    Block block;
    if (prepare(axis, width, x, 1, &block)) {
      block_rows<kPairs, 1>(in, stride, rows, block, axis.shift, out, out_stride);
    } else if (prepare(axis, width, x, 2, &block)) {
      block_rows<kPairs, 2>(in, stride, rows, block, axis.shift, out, out_stride);
    } else {
      const int64_t end = axis.outputs - x < 16 ? axis.outputs : x + 16;
      for (int64_t r = 0; r < rows; ++r) {
        plain_part(in + r * stride, axis, x, end, out + r * out_stride);
      }
    }
  }
}

void along_rows(const uint8_t* in, int64_t stride, int64_t rows, int64_t width,
                const ResampleAxis& axis, uint8_t* out, int64_t out_stride) {
  switch (axis.taps) {
    case 4: return all_blocks<2>(in, stride, rows, width, axis, out, out_stride);
    case 6: return all_blocks<3>(in, stride, rows, width, axis, out, out_stride);
    case 8: return all_blocks<4>(in, stride, rows, width, axis, out, out_stride);
    case 10: return all_blocks<5>(in, stride, rows, width, axis, out, out_stride);
    case 12: return all_blocks<6>(in, stride, rows, width, axis, out, out_stride);
    default: return plain_rows(in, stride, rows, width, axis, out, out_stride);
  }
}

void along_columns(const uint8_t* in, int64_t stride, int64_t width, const ResampleAxis& axis,
                   uint8_t* out, int64_t out_stride) {
  if (axis.taps % 2) return plain_columns(in, stride, width, axis, out, out_stride);
  const __m512i half = _mm512_set1_epi32(1 << (axis.shift - 1)), zero = _mm512_setzero_si512();
  const __m128i shifts = _mm_cvtsi32_si128(axis.shift);
  for (int64_t y = 0; y < axis.outputs; ++y) {
    const uint8_t* lines = in + axis.first[y] * stride;
    const int16_t* weights = axis.weights + y * axis.taps;
    for (int64_t x = 0; x < width; x += 32) {
      const int64_t left = width - x;
      const __mmask32 store = left >= 32 ? 0xffffffffu : static_cast<__mmask32>((1ull << left) - 1);
      __m512i low = half, high = half;
      for (int t = 0; t < axis.taps; t += 2) {
        const uint8_t* line = lines + t * stride + x;
        const __m512i a =
            _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(line)));
        const __m512i b = _mm512_cvtepu8_epi16(
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(line + stride)));
        const uint32_t pair = static_cast<uint16_t>(weights[t]) |
                              static_cast<uint32_t>(static_cast<uint16_t>(weights[t + 1])) << 16;
        const __m512i w = _mm512_set1_epi32(static_cast<int32_t>(pair));
        low = _mm512_add_epi32(low, _mm512_madd_epi16(_mm512_unpacklo_epi16(a, b), w));
        high = _mm512_add_epi32(high, _mm512_madd_epi16(_mm512_unpackhi_epi16(a, b), w));
      }
      const __m512i words =
          _mm512_packs_epi32(_mm512_sra_epi32(low, shifts), _mm512_sra_epi32(high, shifts));
      _mm512_mask_cvtusepi16_storeu_epi8(out + y * out_stride + x, store,
                                         _mm512_max_epi16(words, zero));
    }
  }
}

}  // namespace

extern const ResampleKernels kResampleAvx512;
const ResampleKernels kResampleAvx512 = {along_rows, along_columns};

}  // namespace clustermim
