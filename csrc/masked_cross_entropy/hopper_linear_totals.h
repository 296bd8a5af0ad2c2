// What the threads of the linear loss find in all their tokens: summed in a fixed order.
#pragma once

#include "hopper/instructions.h"
#include "masked_cross_entropy/hopper_linear_arguments.h"
#include "masked_cross_entropy/hopper_linear_layout.h"

namespace clustermim::hopper {

// Of a token's values, which four threads share, the i-th of one of them.
CMIM_DEVICE int class_of_value(int quad, int i) {
  return 8 * (i / 2) + 2 * quad + i % 2;
}

template <class F>
struct LinearTotals {
  static constexpr int kValues = F::kValues, kKept = (kValues + 7) / 8;
  double loss = 0;
  int correct = 0;
  float classes[kKept] = {};  // of db

  // Adds up a class' gradients of the eight tokens of a warp that share a place in their fours. Of
  // all classes a lane keeps half and hands on the other half, three times.
  CMIM_DEVICE void add_classes(float (&values)[kValues]) {
    keep_half<kValues>(values, 16);
    keep_half<(kValues + 1) / 2>(values, 8);
    keep_half<(kValues + 3) / 4>(values, 4);
#pragma unroll
    for (int i = 0; i < kKept; ++i) classes[i] += values[i];
  }

  // To be called by the 256 threads of both warpgroups, once neither reads tiles any more.
  CMIM_DEVICE void store(const LinearArguments& a, LinearMemory<F> memory) {
    const Address losses = memory.stage(0), sums = losses + 256 * 8;
    const int thread = thread_index() - 128;
    some_sync<256>();
    store_double(losses + thread * 8, loss);
    int begin, end;
    kept_classes(begin, end);
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
      const int k = class_of_value(thread % 4, begin + i);
      if (begin + i < end) store_float(sums + (thread / 32 * F::kClasses + k) * 4, classes[i]);
    }
    for (int with = 16; with >= 4; with /= 2) correct += from_lane_xor(correct, with);
    if (a.correct && is_first_lane()) add_atomically(a.correct, correct);
    some_sync<256>();
    if (thread < a.num_classes) {
      float sum = 0;
      for (int w = 0; w < 8; ++w) sum += load_float(sums + (w * F::kClasses + thread) * 4);
      if (a.db) a.db[int64(block_index()) * a.num_classes + thread] = sum;
      if (a.histogram) add_atomically(a.histogram + thread, load_int(memory.chosen(thread)));
    }
    if (a.sums && thread < 32) store_loss(a, losses, thread);
  }

 private:
  template <int kLeft>
  CMIM_DEVICE static void keep_half(float (&values)[kValues], int with) {
    constexpr int kHalf = (kLeft + 1) / 2;
    const bool upper = thread_index() & with;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const float above = kHalf + i < kLeft ? values[kHalf + i < kLeft ? kHalf + i : 0] : 0.0f;
      const float other = from_lane_xor(upper ? values[i] : above, with);
      values[i] = (upper ? above : values[i]) + other;
    }
  }

  // Which values' sums this lane has kept.
  CMIM_DEVICE static void kept_classes(int& begin, int& end) {
    begin = 0, end = kValues;
    int left = kValues;
    for (int with = 16; with >= 4; with /= 2) {
      const int half = (left + 1) / 2;
      if (thread_index() & with)
        begin += half;
      else
        end = begin + half < end ? begin + half : end;
      left = half;
    }
  }

  CMIM_DEVICE static void store_loss(const LinearArguments& a, Address losses, int lane) {
    double sum = 0;
    for (int i = lane; i < 256; i += 32) sum += load_double(losses + i * 8);
    store_double(losses + lane * 8, sum);
    warp_sync();
    if (lane != 0) return;
    sum = 0;
    for (int i = 0; i < 32; ++i) sum += load_double(losses + i * 8);
    a.sums[block_index()] = sum;
  }
};

}  // namespace clustermim::hopper
