// The linear loss of bfloat16 inputs on AMX: products of 2 x 2 tiles, float32 between them.
#include "assign/tiles_amx.h"
#include "masked_cross_entropy/linear_kernel.h"

#define CMIM_VECTOR_BYTES 64
#include "masked_cross_entropy/transpose_avx512.h"

namespace clustermim {
namespace {

constexpr int64_t kTileBytes = 1024;
using Floats = FloatVector::Vec;
#define CMIM_ALWAYS __attribute__((always_inline))
#define CMIM_METHOD CMIM_ALWAYS inline

CMIM_INLINE __m512 exp_of(__m512 x) {
  return (__m512)FloatVector::exp((Floats)x);
}

// Rows 2p and 2p + 1 of 32, word by word: two tiles, of the words [0, 16) and [16, 32).
CMIM_INLINE void store_pairs(const __m512i v[2][16], char* pairs) {
  for (int p = 0; p < 16; ++p) {
    const __m512i a = v[p / 8][p % 8 * 2], b = v[p / 8][p % 8 * 2 + 1];
    _mm512_store_si512(pairs + p * 64, interleave_first(a, b));
    _mm512_store_si512(pairs + kTileBytes + p * 64, interleave_second(a, b));
  }
}

CMIM_INLINE void store_transposed(__m512i v[2][16], char* out) {
  for (int half = 0; half < 2; ++half) {
    transpose_16x16(v[half]);
    for (int i = 0; i < 16; ++i) {
      _mm512_store_si512(out + half * kTileBytes + i * 64, v[half][i]);
    }
  }
}

void pack_tokens(const uint16_t* const* rows, int64_t dim, char* columns, char* pairs) {
  for (int64_t d = 0; d < dim; d += kStepValues, columns += 2 * kTileBytes) {
    __m512i v[2][16];
    for (int i = 0; i < 32; ++i) {
      v[i / 16][i % 16] = rows[i] ? load_words(rows[i], d, dim) : _mm512_setzero_si512();
    }
    if (pairs) {
      store_pairs(v, pairs);
      pairs += 2 * kTileBytes;
    }
    store_transposed(v, columns);
  }
}

// [steps of 32 values][panels][two tiles of 16 pairs of classes]
void pack_weight(const uint16_t* weight, int64_t stride, const LinearShape& shape, int64_t panel,
                 char* pairs) {
  for (int64_t s = 0; s < shape.steps(); ++s) {
    __m512i v[2][16];
    for (int64_t c = 0; c < kPanelClasses; ++c) {
      const int64_t k = panel * kPanelClasses + c;
      v[c / 16][c % 16] = k < shape.classes
                              ? load_words(weight + k * stride, s * kStepValues, shape.dim)
                              : _mm512_setzero_si512();
    }
    store_pairs(v, pairs + (s * shape.panels() + panel) * 2 * kTileBytes);
  }
}

// 32 rows of `a` times 32 columns of `b`, summed over steps of 32 values in the tiles 0 to 3.
struct Product {
  const char* a;
  int64_t a_row_bytes, a_rows_16, a_step;
  const char* b;
  int64_t b_step;

  CMIM_METHOD void zero() const {
    CMIM_TILE_ZERO(0);
    CMIM_TILE_ZERO(1);
    CMIM_TILE_ZERO(2);
    CMIM_TILE_ZERO(3);
  }
  CMIM_METHOD void load(const float* from, int64_t stride) const {
    CMIM_TILE_LOAD(0, from, stride * 4);
    CMIM_TILE_LOAD(1, from + 16, stride * 4);
    CMIM_TILE_LOAD(2, from + 16 * stride, stride * 4);
    CMIM_TILE_LOAD(3, from + 16 * stride + 16, stride * 4);
  }
  CMIM_METHOD void store(float* to, int64_t stride) const {
    CMIM_TILE_STORE(0, to, stride * 4);
    CMIM_TILE_STORE(1, to + 16, stride * 4);
    CMIM_TILE_STORE(2, to + 16 * stride, stride * 4);
    CMIM_TILE_STORE(3, to + 16 * stride + 16, stride * 4);
  }
  CMIM_METHOD void step() {
    CMIM_TILE_LOAD(4, a, a_row_bytes);
    CMIM_TILE_LOAD(6, b, 64);
    CMIM_TILE_DOT_BF16(0, 4, 6);
    CMIM_TILE_LOAD(7, b + kTileBytes, 64);
    CMIM_TILE_DOT_BF16(1, 4, 7);
    CMIM_TILE_LOAD(5, a + a_rows_16, a_row_bytes);
    CMIM_TILE_DOT_BF16(2, 5, 6);
    CMIM_TILE_DOT_BF16(3, 5, 7);
    a += a_step;
    b += b_step;
  }
  CMIM_METHOD void run(int64_t steps, bool accumulate, float* out, int64_t stride) {
    if (accumulate) {
      load(out, stride);
    } else {
      zero();
    }
    for (int64_t s = 0; s < steps; ++s) step();
    store(out, stride);
  }
};

CMIM_INLINE __m512 finite_reference(__m512 max) {
  const __m512 lowest = _mm512_set1_ps(FloatVector::kLowest);
  return _mm512_mask_mov_ps(max, _mm512_cmp_ps_mask(max, lowest, _CMP_EQ_OQ), _mm512_setzero_ps());
}

// A NaN logit reaches the loss through the sum; it never is the largest. The steps of the next
// panel's product are dealt out between the classes: tiles multiply while vectors do this.
template <bool kArgmax>
CMIM_INLINE void softmax_panel(const LinearPanel& panel, const float* bias, Product* next,
                               int64_t steps) {
  float* const z = panel.values;
  StripState& state = *panel.state;
  const int64_t first = panel.first, count = panel.count;
  int64_t done = 0;
  const auto multiply_until = [&](int64_t share) CMIM_ALWAYS {
    for (; done < share; ++done) next->step();
  };
  const int64_t early = steps / 4;  // a maximum takes a third of the time of an exponential

  __m512 largest[2], before[2];
  __m512i where[2];
  for (int h = 0; h < 2; ++h) {
    largest[h] = before[h] = _mm512_load_ps(state.max + 16 * h);
    where[h] = _mm512_load_si512(state.argmax + 16 * h);
  }
  for (int64_t c = 0; c < count; ++c) {
    multiply_until(early * (c + 1) / kPanelClasses);
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
  __m512 shift[2], sum[2], total[2];
  for (int h = 0; h < 2; ++h) {
    const __m512i target = _mm512_load_si512(state.target + 16 * h);
    const __m512i within = _mm512_sub_epi32(target, _mm512_set1_epi32(static_cast<int>(first)));
    const __mmask16 here =
        _mm512_cmplt_epu32_mask(within, _mm512_set1_epi32(static_cast<int>(count)));
    for (uint32_t bits = here; bits; bits &= bits - 1) {
      const int t = 16 * h + __builtin_ctz(bits);
      state.target_logit[t] = z[(state.target[t] - first) * kStripTokens + t];
    }
    shift[h] = finite_reference(largest[h]);
    sum[h] = total[h] = _mm512_setzero_ps();
  }
  for (int64_t c = 0; c < count; ++c) {
    multiply_until(early + (steps - early) * (c + 1) / kPanelClasses);
    for (int h = 0; h < 2; ++h) {
      float* at = z + c * kStripTokens + 16 * h;
      const __m512 below = _mm512_sub_ps(_mm512_load_ps(at), shift[h]);
      const __m512 e = exp_of(below);
      sum[h] = _mm512_add_ps(sum[h], e);
      total[h] = _mm512_add_ps(total[h], below);
      _mm512_store_ps(at, e);
    }
  }
  multiply_until(steps);
  for (int h = 0; h < 2; ++h) {
    const __m512 fade = exp_of(_mm512_sub_ps(before[h], shift[h]));
    float* const sums = state.sum + 16 * h;
    _mm512_store_ps(sums, _mm512_fmadd_ps(_mm512_load_ps(sums), fade, sum[h]));
    // The classes before this panel are now that much farther below the largest.
    const __m512 rise = _mm512_sub_ps(finite_reference(before[h]), shift[h]);
    float* const totals = state.total + 16 * h;
    const __m512 earlier =
        _mm512_fmadd_ps(rise, _mm512_set1_ps(static_cast<float>(first)), _mm512_load_ps(totals));
    _mm512_store_ps(totals, _mm512_add_ps(earlier, total[h]));
    _mm512_store_ps(state.max + 16 * h, largest[h]);
    _mm512_store_si512(state.argmax + 16 * h, where[h]);
    _mm512_store_ps(panel.reference + 16 * h, largest[h]);
  }
}

void softmax(const LinearPanel& panel, const float* bias, bool want_argmax, Product* next,
             int64_t steps) {
  if (want_argmax) {
    softmax_panel<true>(panel, bias, next, steps);
  } else {
    softmax_panel<false>(panel, bias, next, steps);
  }
}

void logits(const uint16_t* weight, int64_t stride, int64_t steps, const char* columns,
            const LinearPanel* last, const float* bias, bool want_argmax, float* out) {
  Product product = {reinterpret_cast<const char*>(weight),
                     stride * 2,
                     16 * stride * 2,
                     64,
                     columns,
                     2 * kTileBytes};
  product.zero();
  if (last) {
    softmax(*last, bias, want_argmax, &product, steps);
  } else {
    for (int64_t s = 0; s < steps; ++s) product.step();
  }
  product.store(out, kStripTokens);
}

void finish_logits(const LinearPanel& last, const float* bias, bool want_argmax) {
  softmax(last, bias, want_argmax, nullptr, 0);
}

// The 16 sums of 16 vectors' lanes.
CMIM_INLINE __m512 sum_lanes(const __m512 v[16]) {
  __m512 a[8], b[4], c[2];
  for (int i = 0; i < 8; ++i) {
    a[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]),
                         _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
  }
  for (int i = 0; i < 4; ++i) {
    const __m512d x = _mm512_castps_pd(a[2 * i]), y = _mm512_castps_pd(a[2 * i + 1]);
    b[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  }
  for (int i = 0; i < 2; ++i) {
    c[i] = _mm512_add_ps(_mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0x88),
                         _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0xdd));
  }
  return _mm512_add_ps(_mm512_shuffle_f32x4(c[0], c[1], 0x88),
                       _mm512_shuffle_f32x4(c[0], c[1], 0xdd));
}

void gradient(const LinearPanel& panel, const StripFactors& factors, char* classes, char* tokens,
              float* sums) {
  const StripState& state = *panel.state;
  __m512 factor[2], hard[2];
  __m512i target[2];
  __mmask16 live[2];
  for (int h = 0; h < 2; ++h) {
    const __m512 max = finite_reference(_mm512_load_ps(state.max + 16 * h));
    const __m512 fade = exp_of(_mm512_sub_ps(_mm512_load_ps(panel.reference + 16 * h), max));
    target[h] = _mm512_load_si512(state.target + 16 * h);
    // A NaN of a token that is not there would spread through the products.
    live[h] = _mm512_cmpge_epi32_mask(target[h], _mm512_setzero_si512());
    factor[h] = _mm512_mul_ps(fade, _mm512_load_ps(factors.softmax + 16 * h));
    hard[h] = _mm512_load_ps(factors.hard + 16 * h);
  }
  __m512 whole[2][16];
  __m512i pairs[2][16];
  for (int64_t c = 0; c < kPanelClasses; c += 2) {
    __m512i rounded[2];
    for (int64_t i = 0; i < 2; ++i) {
      const __m512i id = _mm512_set1_epi32(static_cast<int32_t>(panel.first + c + i));
      __m512 value[2];
      for (int h = 0; h < 2; ++h) {
        const __m512 e = _mm512_load_ps(panel.values + (c + i) * kStripTokens + 16 * h);
        const __m512 p = _mm512_maskz_mul_ps(c + i < panel.count ? live[h] : 0, e, factor[h]);
        value[h] = _mm512_mask_sub_ps(p, _mm512_cmpeq_epi32_mask(target[h], id), p, hard[h]);
      }
      rounded[i] = (__m512i)_mm512_cvtne2ps_pbh(value[1], value[0]);
      whole[c / 16][c % 16 + i] = _mm512_add_ps(value[0], value[1]);
      if (classes) _mm512_store_si512(classes + (c + i) * 64, rounded[i]);
    }
    if (!tokens) continue;
    pairs[0][c / 2] = interleave_first(rounded[0], rounded[1]);
    pairs[1][c / 2] = interleave_second(rounded[0], rounded[1]);
  }
  if (tokens) store_transposed(pairs, tokens);
  if (!sums) return;
  for (int half = 0; half < 2; ++half) _mm512_store_ps(sums + 16 * half, sum_lanes(whole[half]));
}

void input_gradient(const char* tokens, const char* weight, int64_t panels, bool accumulate,
                    float* out, int64_t stride) {
  Product product = {tokens, 64, kTileBytes, 2 * kTileBytes, weight, 2 * kTileBytes};
  product.run(panels, accumulate, out, stride);
}

void store_row(const float* gradient, int64_t dim, float factor, const float* direction,
               uint16_t* row) {
  const __m512 f = _mm512_set1_ps(-factor);
  for (int64_t d = 0; d < dim; d += kStepValues) {
    __m512 low = _mm512_load_ps(gradient + d), high = _mm512_load_ps(gradient + d + 16);
    if (direction) {
      low = _mm512_fmadd_ps(f, _mm512_loadu_ps(direction + d), low);
      high = _mm512_fmadd_ps(f, _mm512_loadu_ps(direction + d + 16), high);
    }
    const int64_t left = dim - d;
    const __mmask32 in = left >= 32 ? ~0u : (1u << left) - 1;
    _mm512_mask_storeu_epi16(row + d, in, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
}

void weight_gradient(const char* classes, int64_t classes_stride, const char* pairs,
                     int64_t pairs_stride, int64_t strips, int64_t begin, int64_t end,
                     bool accumulate, float* out, int64_t out_stride) {
  for (int64_t s = begin; s < end; ++s) {
    Product product = {classes,     64, kTileBytes, classes_stride, pairs + s * 2 * kTileBytes,
                       pairs_stride};
    product.run(strips, accumulate, out + s * kStepValues, out_stride);
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
const LinearKernel kLinearAmx = {enter_tiles, leave_tiles,     pack_tokens, pack_weight,
                                 logits,      finish_logits,   gradient,    input_gradient,
                                 store_row,   weight_gradient, scaled_sum,  sum_rows};

}  // namespace clustermim
