// One row at a time: the functions that each ISA unit provides. Plain pointers and no standard
// headers below, so that a unit compiled for one ISA can share nothing with another.
#pragma once

#include <cstdint>

namespace clustermim {

// "acc" is float, double for f64 logits.
struct RowTask {
  const void* logits;        // [num_classes]
  const void* bias;          // acc [num_classes] or null
  const void* class_weight;  // acc [num_classes] or null
  int64_t num_classes;
  int64_t target;
  double class_weight_sum;
  double label_smoothing;
  bool want_argmax;
};
struct RowResult {
  double loss, max, sum;
  int64_t argmax;
};

struct RowFunctions {
  void (*forward)(const RowTask&, RowResult&);
  // grad [num_classes] in the logits' dtype; max and sum as the forward found them
  void (*backward)(const RowTask&, double max, double sum, double scale, void* grad);
  void (*widen)(const void* source, int64_t n, void* out);
  void (*narrow)(const void* source, int64_t n, void* out);
};

// Indexed by DType: f32, f64, f16, bf16.
struct RowKernel {
  RowFunctions of[4];
};

extern const RowKernel kRowKernelGeneric;
#if defined(__x86_64__)
extern const RowKernel kRowKernelAvx2;
extern const RowKernel kRowKernelAvx512;
#endif

}  // namespace clustermim
