// The linear loss of bfloat16 inputs on AMX: products of 2 x 2 tiles, float32 between them.
#include "assign/tiles_amx.h"
#include "masked_cross_entropy/linear_kernel.h"
#include "masked_cross_entropy/linear_pack_avx512.h"
#include "masked_cross_entropy/linear_sums_avx512.h"

namespace clustermim {
namespace {

// 32 rows of `a` times 32 columns of `b`, summed over steps of 32 values in the tiles 0 to 3.
struct Product {
  const char* a;
  int64_t a_row_bytes, a_rows_16, a_step;
  const char* b;
  int64_t b_step;

  CMIM_INLINE void zero() const {
    CMIM_TILE_ZERO(0);
    CMIM_TILE_ZERO(1);
    CMIM_TILE_ZERO(2);
    CMIM_TILE_ZERO(3);
  }
  CMIM_INLINE void load(const float* from, int64_t stride) const {
    CMIM_TILE_LOAD(0, from, stride * 4);
    CMIM_TILE_LOAD(1, from + 16, stride * 4);
    CMIM_TILE_LOAD(2, from + 16 * stride, stride * 4);
    CMIM_TILE_LOAD(3, from + 16 * stride + 16, stride * 4);
  }
  CMIM_INLINE void store(float* to, int64_t stride) const {
    CMIM_TILE_STORE(0, to, stride * 4);
    CMIM_TILE_STORE(1, to + 16, stride * 4);
    CMIM_TILE_STORE(2, to + 16 * stride, stride * 4);
    CMIM_TILE_STORE(3, to + 16 * stride + 16, stride * 4);
  }
  CMIM_INLINE void step() {
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
  CMIM_INLINE void run(int64_t steps, bool accumulate, float* out, int64_t stride) {
    if (accumulate) {
      load(out, stride);
    } else {
      zero();
    }
    for (int64_t s = 0; s < steps; ++s) step();
    store(out, stride);
  }
};

// A NaN logit reaches the loss through the sum; it never is the largest. The steps of the next
// panel's product are dealt out between the classes: tiles multiply while vectors do this.
template <bool kArgmax>
CMIM_INLINE void softmax_panel(const LinearPanel& panel, const float* bias, Product* next,
                               int64_t steps) {
  float* const z = panel.values;
  StripState& state = *panel.state;
  const int64_t first = panel.first, count = panel.count;
  int64_t done = 0;
  const auto multiply_until = [&](int64_t share) __attribute__((always_inline)) {
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

void gradient(const LinearPanel& panel, const StripFactors& factors, char* classes, char* tokens,
              float* sums) {
  const StripState& state = *panel.state;
  __m512 factor[2], hard[2];
  __m512i target[2];
  __mmask16 live[2];
  for (int h = 0; h < 2; ++h) {
    const __m512 max = _mm512_load_ps(state.max + 16 * h);  // -inf: NaN, as the loss
    const __m512 fade = exp_of(_mm512_sub_ps(_mm512_load_ps(panel.reference + 16 * h), max));
    target[h] = _mm512_load_si512(state.target + 16 * h);
    // A NaN of a token that is not there would spread through the products. (A class that is not
    // there has e = 0, its logits as the zeros of its weight made them.)
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
        const __m512 p = _mm512_maskz_mul_ps(live[h], e, factor[h]);
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

void weight_gradient(const char* classes, int64_t classes_stride, const char* pairs,
                     int64_t pairs_stride, int64_t strips, int64_t begin, int64_t end,
                     bool accumulate, float* out, int64_t out_stride, int64_t out_step) {
  for (int64_t s = begin; s < end; ++s) {
    Product product = {classes,     64, kTileBytes, classes_stride, pairs + s * 2 * kTileBytes,
                       pairs_stride};
    product.run(strips, accumulate, out + s * out_step, out_stride);
  }
}

}  // namespace

extern const LinearKernel kLinearAmx;
const LinearKernel kLinearAmx = {enter_tiles, leave_tiles,     pack_tokens, pack_weight,
                                 logits,      finish_logits,   gradient,    input_gradient,
                                 store_row,   weight_gradient, scaled_sum,  mean_rows};

}  // namespace clustermim
