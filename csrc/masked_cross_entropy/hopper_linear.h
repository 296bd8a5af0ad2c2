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

namespace clustermim::hopper {

template <class F>
CMIM_DEVICE void init_barriers(LinearMemory<F> memory) {
  for (int s = 0; s < F::kStages; ++s) {
    barrier_init(memory.full(s), 1);
    barrier_init(memory.empty(s), 8);  // warps
  }
  for (int g = 0; g < 2; ++g) {
    barrier_init(memory.inbox_full(g), 1);
    barrier_init(memory.inbox_empty(g), 4);
    barrier_init(memory.dz_full(g), 4);
    barrier_init(memory.dz_empty(g), 4);
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

template <class F>
CMIM_DEVICE void linear_rows(const LinearArguments& a, Address shared) {
  const LinearMemory<F> memory = {shared};
  const int rank = F::kCluster == 1 ? 0 : cluster_rank();
  const int warp = uniform(thread_index() / 32);
  if (thread_index() == 0) init_barriers(memory);
  load_weight(a, memory, rank);
  // The other block's barriers are arrived at, too.
  if (F::kCluster == 1)
    block_sync();
  else
    cluster_sync();

  if (warp < 4) {
    give_registers<F::kOtherRegisters>();
    if (warp < F::kStages)
      fetch_tokens(a, memory, rank, warp);
    else if (!a.again)
      clear_the_rest<F>(a);
  } else {
    take_registers<F::kConsumerRegisters>();
    LinearConsumer<F>(a, memory, rank, warp / 4 - 1).run();
  }
  // Neither block may end while the other still writes to its memory.
  if (F::kCluster != 1) cluster_sync();
}

}  // namespace clustermim::hopper
