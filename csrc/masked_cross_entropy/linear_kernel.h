// What the linear loss does with strips of 32 tokens, for one ISA unit. Plain pointers and no
// standard headers below, as in row_kernel.h.
//
// Tokens lie in the lanes of vectors: a class is a row of 32 logits, a panel 32 classes.
#pragma once

#include <cstdint>

namespace clustermim {

constexpr int64_t kStripTokens = 32;
constexpr int64_t kPanelClasses = 32;
constexpr int64_t kStepValues = 32;

struct LinearShape {
  int64_t dim, classes;
  int64_t steps() const { return (dim + kStepValues - 1) / kStepValues; }
  int64_t panels() const { return (classes + kPanelClasses - 1) / kPanelClasses; }
  int64_t strip_bytes() const { return steps() * 2048; }  // 32 inputs
};

// Softmax of the panels so far, one value for each token of a strip.
struct alignas(64) StripState {
  float max[kStripTokens];    // of the logits
  float sum[kStripTokens];    // of exp(z - max)
  float total[kStripTokens];  // of z
  float target_logit[kStripTokens];
  int32_t target[kStripTokens];  // -1: no such token
  int32_t argmax[kStripTokens];
};

// Factors of a strip's gradients: of a token, dZ_k = factor exp(z_k - max) - hard [k = target].
struct alignas(64) StripFactors {
  float softmax[kStripTokens];
  float hard[kStripTokens];
};

struct LinearKernel {
  // Around everything that multiplies: logits, input_gradient, weight_gradient.
  void (*enter)();
  void (*leave)();

  // A strip's inputs from its rows (null: no such token, zeros), as second operand of the logits
  // ("columns") and, if not null, of dW ("pairs"): strip_bytes() each.
  void (*pack_tokens)(const uint16_t* const* rows, int64_t dim, char* columns, char* pairs);

  // Classes [32 panel, ...) of W^T, the first operand of dX.
  void (*pack_weight)(const uint16_t* weight, int64_t stride, const LinearShape& shape,
                      int64_t panel, char* transposed);

  // exponentials [32 classes][32 tokens] = exp(z - reference), z = weight . input + bias;
  // reference [32 tokens]: the largest logit so far. `weight`: 32 rows, dense to whole steps.
  void (*logits)(const uint16_t* weight, int64_t stride, const LinearShape& shape, int64_t panel,
                 const char* columns, const float* bias, bool want_argmax, StripState& state,
                 float* exponentials, float* reference);

  // dZ of a panel, rounded, as first operand of dW ([32 classes][32 tokens]; may be null) and as
  // second of dX (two tiles; may be null); sums [32 classes] over the tokens, not rounded (may be
  // null).
  void (*gradient)(const LinearShape& shape, int64_t panel, const StripState& state,
                   const StripFactors& factors, const float* exponentials, const float* reference,
                   char* classes, char* pairs, float* sums);

  // out [32 * steps][32 tokens] (+)= W^T dZ^T over the panels [begin, end) for 32 values from
  // 32 * step on.
  void (*input_gradient)(const char* transposed, const LinearShape& shape, int64_t step,
                         int64_t begin, int64_t end, const char* pairs, bool accumulate,
                         float* out);
  // rows [32] (null: none): round(gradient - factor[token] * direction); direction may be null.
  void (*store_rows)(const float* gradient, int64_t dim, const float* factor,
                     const float* direction, uint16_t* const* rows);

  // Over `strips` strips, in order: out [32 classes][values of the steps [begin, end)] (+)= dZ^T X.
  void (*weight_gradient)(const char* classes, int64_t classes_stride, const char* pairs,
                          int64_t pairs_stride, int64_t strips, int64_t begin, int64_t end,
                          bool accumulate, float* out, int64_t out_stride);
  // out [32] += sum_n scale_n x_n for 32 values from 32 * step on.
  void (*scaled_sum)(const char* pairs, int64_t pairs_stride, int64_t strips, const float* scale,
                     int64_t step, float* out);
  // out [32] = the sum of `count` rows, for 32 values from 32 * step on.
  void (*sum_rows)(const uint16_t* rows, int64_t stride, int64_t count, int64_t dim, int64_t step,
                   float* out);
};

#if defined(__x86_64__)
extern const LinearKernel kLinearAmx;
#endif

}  // namespace clustermim
