// Softmax cross-entropy of chosen rows of logits, and what the linear variant needs around its
// GEMMs.
//
// A token is a position of target [N]; tokens are numbered 0..N-1 and grouped in samples of
// `rows_per_sample`. `rows` lists the tokens to work on. Arithmetic is float32, float64 for f64
// logits ("acc" below). Each row is computed by one thread, in one order: results do not depend on
// the number of threads. Sizes and offsets are int64_t throughout. Size 0 does nothing.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/status.h"

namespace clustermim {

// Stable partition of the tokens into those that count (mask != 0 and target != ignore_index) and
// the rest. mask may be null (all). masked_per_sample < 0: not given.
struct RowListArgs {
  const int64_t* target;
  const uint8_t* mask;
  int64_t num_tokens;
  int64_t tokens_per_sample;
  int64_t ignore_index;
  int64_t num_classes;
  int64_t masked_per_sample;
  int64_t* rows;  // out: [num_tokens], the counted first
};
struct RowListResult {
  int64_t count = 0;
  int64_t wrong_target = -1;  // first counted token whose target is outside [0, num_classes)
  int64_t wrong_sample = -1;  // first sample whose mask does not hold masked_per_sample tokens
  int64_t found = 0;          // ... and how many it holds
};
Status masked_row_list(const RowListArgs& args, RowListResult& result);

struct CrossEntropyRows {
  // Logits of token t stand at (t / rows_per_sample) * sample_stride + (t % rows_per_sample) *
  // row_stride, or, if compact, those of the i-th listed token at i * row_stride. Strides in
  // elements; a row's num_classes logits are dense.
  const void* logits;
  DType logits_dtype;
  int64_t sample_stride, row_stride, rows_per_sample;
  bool compact;
  int64_t num_classes;
  const int64_t* rows;  // [num_rows]
  int64_t num_rows;
  int64_t num_tokens;
  const int64_t* target;     // [num_tokens]
  const void* bias;          // acc [num_classes] added to every row, or null
  const void* class_weight;  // acc [num_classes], torch's meaning, or null
  double class_weight_sum;
  double label_smoothing;
  int threads;
};

// With z the row plus bias, w the class weights (1), e the smoothing, y the target:
//   loss = (1-e) w_y (lse - z_y) + e/K sum_k w_k (lse - z_k)
struct CrossEntropyForwardArgs : CrossEntropyRows {
  void* stats;      // out: acc [2][num_tokens], listed tokens: max_k z_k and sum_k exp(z_k - max)
  void* loss;       // out: acc [num_rows]
  int64_t* argmax;  // out: [num_rows], lowest id on ties, -1 if the loss is NaN; or null
};
Status cross_entropy_forward(const CrossEntropyForwardArgs& args);

// grad = scale_i * (p_k c - e/K w_k - (1-e) w_y [k = y]), c = (1-e) w_y + e/K sum w, in acc,
// rounded once.
struct CrossEntropyBackwardArgs : CrossEntropyRows {
  const void* stats;    // from the forward
  const double* scale;  // [num_rows]: not rounded to acc before it is multiplied
  // out, in the logits' dtype, dense: compact ? [num_rows][num_classes] :
  // [num_tokens][num_classes]. May be the logits themselves when compact.
  void* grad;
  // Not compact: rows holds num_tokens entries; the tokens after the first num_rows get zeros.
  bool zero_rest;
};
Status cross_entropy_backward(const CrossEntropyBackwardArgs& args);

// Vectors of the listed tokens: token t's stands at (t / rows_per_sample) * sample_stride +
// (t % rows_per_sample) * row_stride, `dim` dense elements.
struct TokenRows {
  DType dtype;
  int64_t sample_stride, row_stride, rows_per_sample;
  int64_t dim;
  const int64_t* rows;  // [num_rows]
  int64_t num_rows;
  int64_t num_tokens;
  int threads;
};
struct GatherArgs : TokenRows {
  const void* source;
  void* out;  // acc [num_rows][dim]
};
Status gather_token_rows(const GatherArgs& args);

// destination[token] = round(source_i); zeros where source is null.
struct ScatterArgs : TokenRows {
  const void* source;  // acc [num_rows][dim] or null
  void* destination;
};
Status scatter_token_rows(const ScatterArgs& args);

}  // namespace clustermim
