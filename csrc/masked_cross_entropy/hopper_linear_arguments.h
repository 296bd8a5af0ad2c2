// What the linear loss on Hopper is given: see LinearArguments. Plain memory, the same for host and
// device.
#pragma once

namespace clustermim::hopper {

// The names are those of ops/masked_linear_cross_entropy/triton_few.py. Null where it is not
// wanted.
struct LinearArguments {
  const void* x;               // [S, prefix + per_sample, dim], rows at multiples of 16 bytes
  const void* weight;          // [num_classes, dim], the same; of the same type
  const float* bias;           // [classes], -inf beyond num_classes
  const void* target;          // int64 or int32 by token
  const double* token_weight;  // by token
  const unsigned char* wrong;  // by sample: the mask does not hold what the caller said
  const long long* rows;       // [num_tokens]: the counted tokens, then the others
  const long long* counted;    // [1]
  float* stats;                // [2, num_tokens]: written with losses, else read
  float* each;                 // by token
  double* sums;                // [blocks]
  long long* correct;          // [1]
  long long* histogram;        // [num_classes]
  const float* factor;         // [1]; null without gradients
  const float* relative;       // [num_tokens] by slot; null: 1 for all
  const float* direction;      // [dim]: smoothing times the mean over classes of the weight
  const float* again;          // [1]: grad_output; dx is made again if that is no power of two
  void* dx;                    // the shape and type of x, rows at multiples of 16 bytes
  float* parts;                // [clusters, num_classes, dim] of dW, without smoothing's part
  float* db;                   // [blocks, num_classes], the same, and without factor
  long long x_sample, x_row, weight_row, dx_sample, dx_row;  // strides, in elements
  int num_tokens, num_classes, dim, per_sample, prefix, samples;
  int target_bytes;   // 8 or 4
  int writes_losses;  // 1: stats, each or sums, correct and histogram are
  float smoothing;
};
static_assert(sizeof(LinearArguments) == 240, "cuda_few.py packs it");

}  // namespace clustermim::hopper
