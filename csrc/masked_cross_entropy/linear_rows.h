// The linear classifier and its loss for chosen tokens of 16-bit inputs, in one pass: logits,
// softmax and dX of a few strips of 32 tokens by one thread, while they are in its cache; then dW
// and db of a chunk of strips by all threads (linear_weight_gradient.h).
#pragma once

#include <cstdint>

#include "core/status.h"

namespace clustermim {

// Has this machine (or CLUSTERMIM_ISA) a kernel for bfloat16 inputs?
bool linear_rows_usable();

// bfloat16 input rows and weight, products summed in float32. Token t's row stands at
// (t / rows_per_sample) * sample_stride + (t % rows_per_sample) * row_stride, strides in elements;
// grad_input has strides of its own. Every output of a token, and every element of dW and db, is
// computed by one thread in one order: results do not depend on the number of threads.
//
//   z = W x + b,   loss = (1-e) (lse - z_y) + e/K sum_k (lse - z_k),   e the label smoothing
//   dZ_k = scale (p_k - (1-e) [k = y]), rounded to bfloat16 as operand of dX and dW; the constant
//   -scale e/K of every class is added to dX, dW and db as the rank-one term it is.
//
// Workspace: W once more for dX, and once more where dim is no multiple of 32; for dW and db 13
// MiB (a small dW is summed in up to 16 parts of 512 KiB); and for all threads together 24 MiB, or
// for each that of 32 tokens where this is more (200 bytes a class and 200 a value of dim). Where K
// and dim are so large that the operands of a task do not fit into those 13 MiB, they take 64 bytes
// a class, and as many a value of dim, for each strip.
struct LinearRowsArgs {
  const uint16_t* input;
  int64_t sample_stride, row_stride, rows_per_sample;
  int64_t dim;
  const int64_t* rows;  // [num_rows + num_rest] tokens
  int64_t num_rows;
  int64_t num_rest;  // tokens that do not count: dX is zero there
  int64_t num_tokens;
  const uint16_t* weight;  // [num_classes][weight_stride]
  int64_t weight_stride;
  int64_t num_classes;
  const float* bias;      // [num_classes] or null
  const int64_t* target;  // [num_tokens], in [0, num_classes) at the rows
  double label_smoothing;
  float* stats;     // out: [2][num_tokens], listed tokens: max_k z_k and sum_k exp(z_k - max)
  float* loss;      // out: [num_rows]
  int64_t* argmax;  // out: [num_rows], lowest id on ties, -1 if the loss is NaN; or null

  // Gradients; without `scale` there are none, each may be null.
  const double* scale;   // [num_rows]
  uint16_t* grad_input;  // out: the listed tokens and the rest
  int64_t grad_sample_stride, grad_row_stride;
  // out: [num_classes and dim, both rounded up to whole 32]; undefined past num_classes
  float* grad_weight;
  float* grad_bias;  // out: [num_classes rounded up to whole 32]; undefined past num_classes
  int threads;
};
Status linear_cross_entropy_rows(const LinearRowsArgs& args);

}  // namespace clustermim
