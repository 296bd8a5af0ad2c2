// What the linear loss does with strips of 32 tokens, for one ISA unit (linear_amx.cpp). Plain
// pointers and no standard headers below, as in row_kernel.h.
//
// In logits and softmax tokens lie in the lanes of vectors: a class is a row of 32 logits, a panel
// 32 classes. dX has tokens as rows, dW classes; so dZ is written once for each.
#pragma once

#include <cstdint>

namespace clustermim {

constexpr int64_t kStripTokens = 32;
constexpr int64_t kPanelClasses = 32;
constexpr int64_t kStepValues = 32;
constexpr int64_t kPanelBytes = 2048;  // 32 x 32 of 16 bits: an operand of a product, two tiles

struct LinearShape {
  int64_t dim, classes;
  int64_t steps() const { return (dim + kStepValues - 1) / kStepValues; }
  int64_t panels() const { return (classes + kPanelClasses - 1) / kPanelClasses; }
  int64_t strip_bytes() const { return steps() * kPanelBytes; }  // 32 inputs
};

// Softmax of the panels so far, one value for each token of a strip.
struct alignas(64) StripState {
  float max[kStripTokens];    // of the logits
  float sum[kStripTokens];    // of exp(z - max)
  float total[kStripTokens];  // of z - max: sums of z itself would cancel
  float target_logit[kStripTokens];
  int32_t target[kStripTokens];  // -1: no such token
  int32_t argmax[kStripTokens];
};

// Factors of a strip's gradients: of a token, dZ_k = factor exp(z_k - max) - hard [k = target].
struct alignas(64) StripFactors {
  float softmax[kStripTokens];
  float hard[kStripTokens];
};

// A panel of a strip's classes.
struct LinearPanel {
  int64_t first, count;  // classes
  float* values;         // [32 classes][32 tokens]: logits without bias, then exp(z - reference)
  float* reference;      // [32 tokens]: the largest logit so far
  StripState* state;
};

struct LinearKernel {
  // Around everything that multiplies: logits, input_gradient, weight_gradient.
  void (*enter)();
  void (*leave)();

  // A strip's inputs from its rows (null: no such token, zeros), as second operand of the logits
  // ("columns") and, if not null, of dW ("pairs"): strip_bytes() each.
  void (*pack_tokens)(const uint16_t* const* rows, int64_t dim, char* columns, char* pairs);

  // Classes [32 panel, ...) of W, as second operand of dX: [steps][panels][kPanelBytes].
  void (*pack_weight)(const uint16_t* weight, int64_t stride, const LinearShape& shape,
                      int64_t panel, char* pairs);

  // out [32 classes][32 tokens] = weight . input, `weight` being 32 rows, dense to whole steps;
  // meanwhile, between the tiles' steps, the softmax of `last`, the panel of the call before (null:
  // none), whose bias is added there; `out`, written after that, may be its values. finish_logits:
  // the softmax of the panel after which none comes.
  void (*logits)(const uint16_t* weight, int64_t stride, int64_t steps, const char* columns,
                 const LinearPanel* last, const float* bias, bool want_argmax, float* out);
  void (*finish_logits)(const LinearPanel& last, const float* bias, bool want_argmax);

  // dZ of a panel, rounded, as first operand of dW ([32 classes][32 tokens]; may be null) and of dX
  // ([32 tokens][32 classes]; may be null); sums [32 classes] over the tokens, not rounded (may be
  // null).
  void (*gradient)(const LinearPanel& panel, const StripFactors& factors, char* classes,
                   char* tokens, float* sums);

  // out [32 tokens][32 values] (+)= dZ W over panels that follow each other in both operands.
  void (*input_gradient)(const char* tokens, const char* weight, int64_t panels, bool accumulate,
                         float* out, int64_t stride);
  // row [dim] = round(gradient - factor * direction); both have whole steps, direction may be null.
  void (*store_row)(const float* gradient, int64_t dim, float factor, const float* direction,
                    uint16_t* row);

  // Over `strips` strips, in order: out [32 classes][32 values] (+)= dZ^T X for each of the steps
  // [begin, end); the next step's `out` is out_step further on.
  void (*weight_gradient)(const char* classes, int64_t classes_stride, const char* pairs,
                          int64_t pairs_stride, int64_t strips, int64_t begin, int64_t end,
                          bool accumulate, float* out, int64_t out_stride, int64_t out_step);
  // out [32] += sum_n scale_n x_n for 32 values from 32 * step on.
  void (*scaled_sum)(const char* pairs, int64_t pairs_stride, int64_t strips, const float* scale,
                     int64_t step, float* out);
  // out [32] = the mean of `count` rows, for 32 values from 32 * step on.
  void (*mean_rows)(const uint16_t* rows, int64_t stride, int64_t count, int64_t dim, int64_t step,
                    float* out);
};

#if defined(__x86_64__)
extern const LinearKernel kLinearAmx;
#endif

}  // namespace clustermim
