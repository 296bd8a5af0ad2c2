// The linear loss of bfloat16 inputs on AMX: products of 2 x 2 tiles, float32 between them.
#include "assign/tiles_amx.h"
#include "masked_cross_entropy/linear_kernel.h"

#define CMIM_VECTOR_BYTES 64
#include "masked_cross_entropy/transpose_avx512.h"

namespace clustermim {
namespace {

constexpr int64_t kTileBytes = 1024;
using Floats = FloatVector::Vec;

CMIM_INLINE __m512 exp_of(__m512 x) {
  return (__m512)FloatVector::exp((Floats)x);
}

void pack_tokens(const uint16_t* const* rows, int64_t dim, char* columns, char* pairs) {
  for (int64_t d = 0; d < dim; d += kStepValues, columns += 2 * kTileBytes) {
    __m512i v[2][16];
    for (int i = 0; i < 32; ++i) {
      v[i / 16][i % 16] = rows[i] ? load_words(rows[i], d, dim) : _mm512_setzero_si512();
    }
    if (pairs) {
      for (int p = 0; p < 16; ++p) {
        const __m512i a = v[p / 8][p % 8 * 2], b = v[p / 8][p % 8 * 2 + 1];
        _mm512_store_si512(pairs + p * 64, interleave_first(a, b));
        _mm512_store_si512(pairs + kTileBytes + p * 64, interleave_second(a, b));
      }
      pairs += 2 * kTileBytes;
    }
    for (int half = 0; half < 2; ++half) {
      transpose_16x16(v[half]);
      for (int i = 0; i < 16; ++i) {
        _mm512_store_si512(columns + half * kTileBytes + i * 64, v[half][i]);
      }
    }
  }
}

// [2 * steps of 16 values][panels][16 values][32 classes]
void pack_weight(const uint16_t* weight, int64_t stride, const LinearShape& shape, int64_t panel,
                 char* transposed) {
  const int64_t panels = shape.panels();
  for (int64_t s = 0; s < shape.steps(); ++s) {
    __m512i v[2][16];
    for (int64_t c = 0; c < kPanelClasses; ++c) {
      const int64_t k = panel * kPanelClasses + c;
      v[c / 16][c % 16] = k < shape.classes
                              ? load_words(weight + k * stride, s * kStepValues, shape.dim)
                              : _mm512_setzero_si512();
    }
    transpose_16x16(v[0]);
    transpose_16x16(v[1]);
    for (int half = 0; half < 2; ++half) {
      char* tile = transposed + ((2 * s + half) * panels + panel) * kTileBytes;
      for (int j = 0; j < 8; ++j) {
        const __m512i a = v[0][half * 8 + j], b = v[1][half * 8 + j];
        _mm512_store_si512(tile + 2 * j * 64, even_words(a, b));
        _mm512_store_si512(tile + (2 * j + 1) * 64, odd_words(a, b));
      }
    }
  }
}

// 32 rows of `a` times 32 columns: out [32][out_stride].
CMIM_INLINE void multiply(const char* a, int64_t a_row_bytes, int64_t a_rows_16, int64_t a_step,
                          const char* b, int64_t b_step, int64_t steps, bool accumulate, float* out,
                          int64_t out_stride) {
  const int64_t stride = out_stride * 4;
  if (accumulate) {
    CMIM_TILE_LOAD(0, out, stride);
    CMIM_TILE_LOAD(1, out + 16, stride);
    CMIM_TILE_LOAD(2, out + 16 * out_stride, stride);
    CMIM_TILE_LOAD(3, out + 16 * out_stride + 16, stride);
  } else {
    CMIM_TILE_ZERO(0);
    CMIM_TILE_ZERO(1);
    CMIM_TILE_ZERO(2);
    CMIM_TILE_ZERO(3);
  }
  for (int64_t s = 0; s < steps; ++s, a += a_step, b += b_step) {
    CMIM_TILE_LOAD(4, a, a_row_bytes);
    CMIM_TILE_LOAD(6, b, 64);
    CMIM_TILE_DOT_BF16(0, 4, 6);
    CMIM_TILE_LOAD(7, b + kTileBytes, 64);
    CMIM_TILE_DOT_BF16(1, 4, 7);
    CMIM_TILE_LOAD(5, a + a_rows_16, a_row_bytes);
    CMIM_TILE_DOT_BF16(2, 5, 6);
    CMIM_TILE_DOT_BF16(3, 5, 7);
  }
  CMIM_TILE_STORE(0, out, stride);
  CMIM_TILE_STORE(1, out + 16, stride);
  CMIM_TILE_STORE(2, out + 16 * out_stride, stride);
  CMIM_TILE_STORE(3, out + 16 * out_stride + 16, stride);
}

CMIM_INLINE __m512 finite_reference(__m512 max) {
  const __m512 lowest = _mm512_set1_ps(FloatVector::kLowest);
  return _mm512_mask_mov_ps(max, _mm512_cmp_ps_mask(max, lowest, _CMP_EQ_OQ), _mm512_setzero_ps());
}

// A NaN logit reaches the loss through the sum; it never is the largest.
template <bool kArgmax>
CMIM_INLINE void softmax_panel(float* z, int64_t first, int64_t count, const float* bias,
                               StripState& state, float* reference) {
  __m512 largest[2], before[2];
  __m512i where[2];
  for (int h = 0; h < 2; ++h) {
    largest[h] = before[h] = _mm512_load_ps(state.max + 16 * h);
    where[h] = _mm512_load_si512(state.argmax + 16 * h);
  }
  for (int64_t c = 0; c < count; ++c) {
    const __m512 shift = _mm512_set1_ps(bias ? bias[first + c] : 0.0f);
    for (int h = 0; h < 2; ++h) {
      const __m512 v = _mm512_add_ps(_mm512_load_ps(z + c * kStripTokens + 16 * h), shift);
      if (bias) _mm512_store_ps(z + c * kStripTokens + 16 * h, v);
      if constexpr (kArgmax) {
        const __mmask16 better = _mm512_cmp_ps_mask(v, largest[h], _CMP_GT_OQ);
        where[h] = _mm512_mask_mov_epi32(where[h], better,
                                         _mm512_set1_epi32(static_cast<int32_t>(first + c)));
      }
      largest[h] = _mm512_max_ps(v, largest[h]);
    }
  }
  for (int h = 0; h < 2; ++h) {
    const __m512i target = _mm512_load_si512(state.target + 16 * h);
    const __m512i within = _mm512_sub_epi32(target, _mm512_set1_epi32(static_cast<int>(first)));
    const __mmask16 here =
        _mm512_cmplt_epu32_mask(within, _mm512_set1_epi32(static_cast<int>(count)));
    for (uint32_t bits = here; bits; bits &= bits - 1) {
      const int t = 16 * h + __builtin_ctz(bits);
      state.target_logit[t] = z[(state.target[t] - first) * kStripTokens + t];
    }
    const __m512 shift = finite_reference(largest[h]);
    __m512 sum = _mm512_setzero_ps(), total = _mm512_setzero_ps();
    for (int64_t c = 0; c < count; ++c) {
      float* at = z + c * kStripTokens + 16 * h;
      const __m512 v = _mm512_load_ps(at);
      const __m512 e = exp_of(_mm512_sub_ps(v, shift));
      sum = _mm512_add_ps(sum, e);
      total = _mm512_add_ps(total, v);
      _mm512_store_ps(at, e);
    }
    const __m512 fade = exp_of(_mm512_sub_ps(before[h], shift));
    float* const sums = state.sum + 16 * h;
    _mm512_store_ps(sums, _mm512_fmadd_ps(_mm512_load_ps(sums), fade, sum));
    float* const totals = state.total + 16 * h;
    _mm512_store_ps(totals, _mm512_add_ps(_mm512_load_ps(totals), total));
    _mm512_store_ps(state.max + 16 * h, largest[h]);
    _mm512_store_si512(state.argmax + 16 * h, where[h]);
    _mm512_store_ps(reference + 16 * h, largest[h]);
  }
}

void logits(const uint16_t* weight, int64_t stride, const LinearShape& shape, int64_t panel,
            const char* columns, const float* bias, bool want_argmax, StripState& state,
            float* exponentials, float* reference) {
  multiply(reinterpret_cast<const char*>(weight), stride * 2, 16 * stride * 2, 64, columns,
           2 * kTileBytes, shape.steps(), false, exponentials, kStripTokens);
  const int64_t first = panel * kPanelClasses;
  const int64_t count =
      shape.classes - first < kPanelClasses ? shape.classes - first : kPanelClasses;
  if (want_argmax) {
    softmax_panel<true>(exponentials, first, count, bias, state, reference);
  } else {
    softmax_panel<false>(exponentials, first, count, bias, state, reference);
  }
}

void gradient(const LinearShape& shape, int64_t panel, const StripState& state,
              const StripFactors& factors, const float* exponentials, const float* reference,
              char* classes, char* pairs, float* sums) {
  const int64_t first = panel * kPanelClasses;
  const int64_t count =
      shape.classes - first < kPanelClasses ? shape.classes - first : kPanelClasses;
  __m512 factor[2], hard[2];
  __m512i target[2];
  __mmask16 live[2];
  for (int h = 0; h < 2; ++h) {
    const __m512 max = finite_reference(_mm512_load_ps(state.max + 16 * h));
    const __m512 fade = exp_of(_mm512_sub_ps(_mm512_load_ps(reference + 16 * h), max));
    target[h] = _mm512_load_si512(state.target + 16 * h);
    // A NaN of a token that is not there would spread through the products.
    live[h] = _mm512_cmpge_epi32_mask(target[h], _mm512_setzero_si512());
    factor[h] = _mm512_mul_ps(fade, _mm512_load_ps(factors.softmax + 16 * h));
    hard[h] = _mm512_load_ps(factors.hard + 16 * h);
  }
  __m512i whole[2][16];
  for (int64_t c = 0; c < kPanelClasses; c += 2) {
    __m512i rounded[2];
    for (int64_t i = 0; i < 2; ++i) {
      const __m512i id = _mm512_set1_epi32(static_cast<int32_t>(first + c + i));
      __m512 value[2];
      for (int h = 0; h < 2; ++h) {
        const __m512 e = _mm512_load_ps(exponentials + (c + i) * kStripTokens + 16 * h);
        const __m512 p = _mm512_maskz_mul_ps(c + i < count ? live[h] : 0, e, factor[h]);
        value[h] = _mm512_mask_sub_ps(p, _mm512_cmpeq_epi32_mask(target[h], id), p, hard[h]);
      }
      rounded[i] = (__m512i)_mm512_cvtne2ps_pbh(value[1], value[0]);
      whole[c / 16][c % 16 + i] = _mm512_castps_si512(_mm512_add_ps(value[0], value[1]));
      if (classes) _mm512_store_si512(classes + (c + i) * 64, rounded[i]);
    }
    if (pairs) {
      _mm512_store_si512(pairs + c / 2 * 64, interleave_first(rounded[0], rounded[1]));
      _mm512_store_si512(pairs + kTileBytes + c / 2 * 64,
                         interleave_second(rounded[0], rounded[1]));
    }
  }
  if (!sums) return;
  for (int half = 0; half < 2; ++half) {
    transpose_16x16(whole[half]);
    __m512 sum = _mm512_castsi512_ps(whole[half][0]);
    for (int i = 1; i < 16; ++i) sum = _mm512_add_ps(sum, _mm512_castsi512_ps(whole[half][i]));
    _mm512_store_ps(sums + 16 * half, sum);
  }
}

void input_gradient(const char* transposed, const LinearShape& shape, int64_t step, int64_t begin,
                    int64_t end, const char* pairs, bool accumulate, float* out) {
  const int64_t panels = shape.panels();
  multiply(transposed + (2 * step * panels + begin) * kTileBytes, 64, panels * kTileBytes,
           kTileBytes, pairs + begin * 2 * kTileBytes, 2 * kTileBytes, end - begin, accumulate,
           out + step * kStepValues * kStripTokens, kStripTokens);
}

void store_rows(const float* gradient, int64_t dim, const float* factor, const float* direction,
                uint16_t* const* rows) {
  for (int64_t d = 0; d < dim; d += kStepValues) {
    for (int h = 0; h < 2; ++h) {
      __m512i v[2][16];
      for (int i = 0; i < 32; ++i) {
        v[i / 16][i % 16] = _mm512_load_si512(gradient + (d + i) * kStripTokens + 16 * h);
      }
      transpose_16x16(v[0]);
      transpose_16x16(v[1]);
      const int64_t left = dim - d;
      const __mmask32 in = left >= 32 ? ~0u : (1u << left) - 1;
      for (int t = 0; t < 16; ++t) {
        uint16_t* row = rows[16 * h + t];
        if (!row) continue;
        __m512 low = _mm512_castsi512_ps(v[0][t]), high = _mm512_castsi512_ps(v[1][t]);
        if (direction) {
          const __m512 f = _mm512_set1_ps(-factor[16 * h + t]);
          low = _mm512_fmadd_ps(f, _mm512_maskz_loadu_ps((__mmask16)in, direction + d), low);
          high = _mm512_fmadd_ps(
              f, _mm512_maskz_loadu_ps((__mmask16)(in >> 16), direction + d + 16), high);
        }
        _mm512_mask_storeu_epi16(row + d, in, (__m512i)_mm512_cvtne2ps_pbh(high, low));
      }
    }
  }
}

void weight_gradient(const char* classes, int64_t classes_stride, const char* pairs,
                     int64_t pairs_stride, int64_t strips, int64_t begin, int64_t end,
                     bool accumulate, float* out, int64_t out_stride) {
  for (int64_t s = begin; s < end; ++s) {
    multiply(classes, 64, kTileBytes, classes_stride, pairs + s * 2 * kTileBytes, pairs_stride,
             strips, accumulate, out + s * kStepValues, out_stride);
  }
}

// out [32] = sum of 32 values from 32 * step on over `count` rows.
void sum_rows(const uint16_t* rows, int64_t stride, int64_t count, int64_t dim, int64_t step,
              float* out) {
  __m512 low = _mm512_setzero_ps(), high = low;
  for (int64_t i = 0; i < count; ++i) {
    const __m512i words = load_words(rows + i * stride, step * kStepValues, dim);
    const auto widened = [](__m256i half) {
      return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    };
    low = _mm512_add_ps(low, widened(_mm512_castsi512_si256(words)));
    high = _mm512_add_ps(high, widened(_mm512_extracti64x4_epi64(words, 1)));
  }
  _mm512_storeu_ps(out, low);
  _mm512_storeu_ps(out + 16, high);
}

void scaled_sum(const char* pairs, int64_t pairs_stride, int64_t strips, const float* scale,
                int64_t step, float* out) {
  for (int tile = 0; tile < 2; ++tile) {
    __m512 all = _mm512_loadu_ps(out + 16 * tile);
    for (int64_t s = 0; s < strips; ++s) {
      const char* in = pairs + s * pairs_stride + (2 * step + tile) * kTileBytes;
      __m512 sum = _mm512_setzero_ps();
      for (int p = 0; p < 16; ++p) {
        const __m512i two = _mm512_load_si512(in + p * 64);
        const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(two, 16));
        const __m512 odd = _mm512_castsi512_ps(
            _mm512_and_si512(two, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
        sum = _mm512_fmadd_ps(_mm512_set1_ps(scale[s * kStripTokens + 2 * p]), even, sum);
        sum = _mm512_fmadd_ps(_mm512_set1_ps(scale[s * kStripTokens + 2 * p + 1]), odd, sum);
      }
      all = _mm512_add_ps(all, sum);
    }
    _mm512_storeu_ps(out + 16 * tile, all);
  }
}

}  // namespace

extern const LinearKernel kLinearAmx;
const LinearKernel kLinearAmx = {enter_tiles,     leave_tiles, pack_tokens,    pack_weight,
                                 logits,          gradient,    input_gradient, store_rows,
                                 weight_gradient, scaled_sum,  sum_rows};

}  // namespace clustermim
