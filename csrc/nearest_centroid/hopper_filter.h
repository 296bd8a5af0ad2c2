// The filter of nearest_centroid on Hopper: float16 scores of every centroid, and of each row its
// id or, where the bound on their error leaves it open, a place in a list.
//
// A block takes 128 rows at a time and keeps them in shared memory, rounded, while all centroids
// pass by. Warps have roles: one asks for tiles of centroids (TMA, into a ring; both blocks of a
// cluster get what either asks for), some read and round rows, two warpgroups multiply. These look
// at the scores of a tile while the tensor cores make the next one's. Bounds: docs/certificate.md,
// section 8; design and counts: docs/cuda.md.
#pragma once

#include "hopper/instructions.h"
#include "nearest_centroid/hopper_arguments.h"
#include "nearest_centroid/hopper_consumer.h"
#include "nearest_centroid/hopper_converter.h"
#include "nearest_centroid/hopper_layout.h"

namespace clustermim::hopper {

// One thread.
template <class F>
CMIM_DEVICE void ask_for_centroids(const FilterArguments& a, const TensorMap* centroids,
                                   Memory<F> memory, int rank) {
  Turn<F::kStages> ring;
  Turn<F::kBiases> bias;
  for (RowTiles<F> rows(rank); rows.any(a); rows.advance()) {
    for (int tile = 0; tile < a.column_tiles; ++tile, bias.advance()) {
#pragma unroll 1
      for (int step = 0; step < F::kSteps; ++step, ring.advance()) {
        const Address full = memory.full(ring.at), stage = memory.stage(ring.at);
        barrier_wait(memory.empty(ring.at), ring.parity ^ 1);
        barrier_arrive_expect(full, F::kStepBytes + (step == 0 ? F::kBiasBytes : 0));
        if (step == 0)
          load_bytes(memory.bias(bias.at), a.bias + tile * F::kColumns, F::kBiasBytes, full);
        const int row = tile * F::kColumns;
        if (F::kCluster == 1) {
          load_box(stage, centroids, step * F::kStep, row, full);
        } else {  // half of it, to both
          load_box_of(stage + rank * (F::kStepBytes / 2), centroids, step * F::kStep,
                      row + rank * (F::kColumns / 2), full, 3);
        }
      }
    }
  }
}

template <class F>
CMIM_DEVICE void filter(const FilterArguments& a, const TensorMap* centroids, Address shared) {
  const Memory<F> memory = {shared};
  const int rank = F::kCluster == 1 ? 0 : cluster_rank();
  const int warp = uniform(thread_index() / 32), lane = thread_index() % 32;
  if (thread_index() == 0) {
    for (int s = 0; s < F::kStages; ++s) {
      barrier_init(memory.full(s), 1);
      barrier_init(memory.empty(s), 8 * F::kCluster);
    }
    for (int c = 0; c < F::kChunks; ++c) {
      barrier_init(memory.chunk_full(c), F::kConverters);
      barrier_init(memory.chunk_empty(c), 8);
    }
    barrier_init(memory.lag(), 4);
    barrier_init_done();
  }
  // The other block's barriers are arrived at, too.
  if (F::kCluster == 1)
    block_sync();
  else
    cluster_sync();

  if (warp < 4) {
    give_registers<F::kOtherRegisters>();
    if (warp == 0) {
      if (lane == 0) ask_for_centroids<F>(a, centroids, memory, rank);
      warp_sync();
    } else if (!F::kOneTile) {
      Converter<F>(a, memory).run(rank);
    }
  } else if (F::kOneTile && warp < 4 + F::kConverters) {
    Converter<F>(a, memory).run_one_tile(rank);
  } else {
    take_registers<F::kConsumerRegisters>();
    Consumer<F>(a, memory, rank, warp / 4 - F::kConsumers).run();
  }
  // Neither block may end while the other still writes to its memory.
  if (F::kCluster != 1) cluster_sync();
}

}  // namespace clustermim::hopper
