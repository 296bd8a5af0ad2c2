// The linear loss of few classes on Hopper: logits, softmax, losses, dX, and parts of dW and db, of
// each counted token in one reading of x.
//
// A block, or a pair that has half the columns of x each, keeps its columns of the weight in shared
// memory and their dW in registers. Three warps fetch tiles of 64 tokens; two warpgroups take them
// in turn: logits (of a pair: parts, exchanged, so that each block makes the softmax of half the
// rows), dZ (handed on to the other block), dW, dX. A fourth warp writes zeros where no token
// counts. Design and counts: docs/cuda.md.
#pragma once

#include "hopper/instructions.h"
#include "hopper/operands.h"
#include "masked_cross_entropy/hopper_linear_arguments.h"
#include "masked_cross_entropy/hopper_linear_consumer.h"
#include "masked_cross_entropy/hopper_linear_layout.h"
#include "masked_cross_entropy/hopper_linear_rows.h"
#include "masked_cross_entropy/hopper_linear_softmax.h"

namespace clustermim::hopper {

template <class F>
CMIM_DEVICE void init_barriers(LinearMemory<F> memory) {
  for (int s = 0; s < F::kStages; ++s) {
    barrier_init(memory.full(s), 1);
    barrier_init(memory.empty(s), F::kWeight ? 8 : 4);  // warps
  }
  for (int g = 0; g < 2; ++g) {
    barrier_init(memory.inbox_full(g), 1);
    barrier_init(memory.inbox_empty(g), 4);
    barrier_init(memory.slopes_full(g), 4);
    barrier_init(memory.slopes_empty(g), 4);
  }
  barrier_init_done();
}

template <class F>
CMIM_DEVICE void load_weight(const LinearArguments& a, LinearMemory<F> memory, int rank) {
  constexpr int kParts = F::kDepth / 8;  // of 16 bytes, of a class
  for (int i = thread_index(); i < F::kClasses * kParts; i += F::kThreads) {
    const int k = i / kParts, part = i % kParts, column = rank * F::kDepth + 8 * part;
    copy_words(memory.weight() + part / 8 * F::kWeightBytes + swizzled_128(k, part % 8),
               static_cast<const uint16*>(a.weight) + k * a.weight_row + column,
               k < a.num_classes && column < a.dim);
  }
  for (int k = thread_index(); k < F::kClasses; k += F::kThreads) {
    store_float(memory.bias(k), load(a.bias + k));
    store_int(memory.chosen(k), 0);
  }
  copies_wait();
  make_visible_to_products();
}

// What the threads have found, added up in a fixed order.
template <class F>
CMIM_DEVICE void store_totals(const LinearArguments& a, LinearMemory<F> memory,
                              LinearTotals<F>& totals) {
  const Address losses = memory.stage(0), classes = losses + 256 * 8;
  const int thread = thread_index(), multiplying = thread - 128;
  block_sync();  // nobody reads tiles any more
  if (multiplying >= 0) {
    store_double(losses + multiplying * 8, totals.loss);
    int begin, end;
    const Softmax<F> softmax(a, memory);
    softmax.kept_classes(begin, end);
#pragma unroll
    for (int i = 0; i < (F::kValues + 7) / 8; ++i)
      if (begin + i < end)
        store_float(
            classes + (multiplying / 32 * F::kClasses + softmax.class_of_value(begin + i)) * 4,
            totals.classes[i]);
    int correct = totals.correct;
    for (int with = 16; with >= 4; with /= 2) correct += from_lane_xor(correct, with);
    if (a.correct && is_first_lane()) add_atomically(a.correct, correct);
  }
  block_sync();
  if (thread < a.num_classes) {
    float sum = 0;
    for (int w = 0; w < 8; ++w) sum += load_float(classes + (w * F::kClasses + thread) * 4);
    if (a.db) a.db[int64(block_index()) * a.num_classes + thread] = sum;
    if (a.histogram) add_atomically(a.histogram + thread, load_int(memory.chosen(thread)));
  }
  if (!a.sums || thread >= 32) return;
  double sum = 0;
  for (int i = 0; i < 256; i += 32) sum += load_double(losses + (i + thread) * 8);
  store_double(losses + thread * 8, sum);
  warp_sync();
  if (thread != 0) return;
  for (int i = 1; i < 32; ++i) sum += load_double(losses + i * 8);
  a.sums[block_index()] = sum;
}

template <class F>
CMIM_DEVICE void linear_rows(const LinearArguments& a, Address shared) {
  const LinearMemory<F> memory = {shared};
  const int rank = F::kCluster == 1 ? 0 : cluster_rank();
  const int warp = uniform(thread_index() / 32);
  const bool stands = a.again && is_power_of_two(load(a.again));  // dX of a grad_output of 1
  const int counted = stands ? 0 : static_cast<int>(load(a.counted));
  if (thread_index() == 0) init_barriers(memory);
  load_weight(a, memory, rank);
  // The other block's barriers are arrived at, too.
  if (F::kCluster == 1)
    block_sync();
  else
    cluster_sync();

  LinearTotals<F> totals;
  if (warp < 4) {
    give_registers<F::kOtherRegisters>();
    if (warp < F::kStages)
      fetch_tokens(a, memory, rank, warp, counted);
    else if (!a.again)
      clear_the_rest<F>(a, counted);
  } else {
    take_registers<F::kConsumerRegisters>();
    LinearConsumer<F>(a, memory, rank, warp / 4 - 1, counted, totals).run();
  }
  if (a.sums || a.db || a.correct) store_totals(a, memory, totals);
  // Neither block may end while the other still writes to its memory.
  if (F::kCluster != 1) cluster_sync();
}

}  // namespace clustermim::hopper
