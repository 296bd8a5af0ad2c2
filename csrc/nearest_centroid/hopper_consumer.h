// The two warpgroups of the Hopper filter: products and scores.
#pragma once

#include "hopper/instructions.h"
#include "hopper/operands.h"
#include "nearest_centroid/hopper_arguments.h"
#include "nearest_centroid/hopper_decide.h"
#include "nearest_centroid/hopper_layout.h"
#include "nearest_centroid/hopper_rows.h"
#include "nearest_centroid/hopper_scores.h"

namespace clustermim::hopper {

template <class F>
struct Consumer {
  const FilterArguments& a;
  Memory<F> memory;
  int rank, group;  // group: 64 rows
  Turn<F::kStages> ring;
  Turn<F::kBiases> bias;
  Scores scores;
  float sum = 0;  // one of the four sums of the two rows of a quad of threads

  CMIM_DEVICE Consumer(const FilterArguments& a, Memory<F> memory, int rank, int group)
      : a(a), memory(memory), rank(rank), group(group) {}

  // Among the tile's.
  CMIM_DEVICE int row_of(int thread, int half) const {
    const int t = thread - 128 * F::kConsumers;
    return t / 32 * 16 + t % 32 / 4 + half * 8;
  }

  // Every warp for itself: one that lags may still be reading.
  CMIM_DEVICE void release_stage() {
    const int lane = thread_index() % 32;
    if (lane < F::kCluster) barrier_arrive_of(memory.empty(ring.last()), rank ^ lane);
  }
  CMIM_DEVICE void release_chunk(int chunk) {
    if (thread_index() % 32 == 0) barrier_arrive(memory.chunk_empty(chunk));
  }

  // Starts the products of a step and lets go of what the last one read.
  CMIM_DEVICE void start_step(float (&sums)[64], int step, bool is_first, bool is_last,
                              int lag_step, int row_parity) {
    const int chunk = step / F::kStepsOfChunk, part = step % F::kStepsOfChunk;
    if (is_first && part == 0) barrier_wait(memory.chunk_full(chunk), row_parity);
    barrier_wait(memory.full(ring.at), ring.parity);
    products_fence();
    const Operand row(memory.chunk(0) + group * (F::kChunkBytes / 2), Swizzle::bytes_128);
    const Operand column(memory.stage(0), F::kSwizzle);
#pragma unroll
    for (int k = 0; k < F::kStep / 16; ++k)
      product<Half::float16, Major::k, Major::k>(
          sums, row.descriptor(chunk * F::kChunkBytes + part * 64 + 32 * k),
          column.descriptor(ring.at * F::kStepBytes + 32 * k), step > 0 || k > 0);
    products_commit();
    products_wait<1>();
    if (step > 0 || !is_first) release_stage();
    if (is_last && step > 0 && part == 0) release_chunk(chunk - 1);
    if (!F::kOneTile && step == lag_step && thread_index() % 32 == 0) barrier_arrive(memory.lag());
    ring.advance();
  }

  // Starts the products of a tile of centroids; looks at the scores of the one before it, if any.
  CMIM_DEVICE void multiply(float (&sums)[64], float (&before)[64], int tile, int row_parity) {
    // Known never to be the first, scores would be sunk behind the last step's products.
    if (!F::kOneTile) tile = opaque(tile);
    const bool is_first = tile == 0, is_last = tile == a.column_tiles - 1;
    // The first warpgroup's arrival, once in a tile of rows, lets the second begin.
    const int lag_step = group == 0 ? F::kLag - tile * F::kSteps : -1;
    if (!F::kOneTile && is_first && group == 1) barrier_wait(memory.lag(), row_parity);
    constexpr int kSpread = F::kSteps < 16 ? F::kSteps : 16;  // steps with scores beside them
#pragma unroll
    for (int step = 0; step < kSpread; ++step) {
      start_step(sums, step, is_first, is_last, lag_step, row_parity);
      if (is_first) continue;
      if (step == 0) products_are_in(before);
#pragma unroll
      for (int g = 0; g < 16; ++g)
        if (g * kSpread / 16 == step) scores.add_columns(g, before, memory.bias(bias.last()));
    }
#pragma unroll F::kStepsOfChunk
    for (int step = kSpread; step < F::kSteps; ++step)
      start_step(sums, step, is_first, is_last, lag_step, row_parity);
    if (is_first) {
      const int thread = thread_index_again(), q = thread % 4;
      sum = load_float(memory.sums(row_of(thread, q / 2)) + q % 2 * 4);
    } else {
      scores.end_tile(tile - 1);
    }
    bias.advance();
  }

  CMIM_DEVICE void finish(float (&sums)[64], int tile) {
    products_wait<0>();
    products_are_in(sums);
    release_stage();
    release_chunk(F::kChunks - 1);
#pragma unroll
    for (int g = 0; g < 16; ++g) scores.add_columns(g, sums, memory.bias(bias.last()));
    scores.end_tile(tile);
  }

  CMIM_DEVICE void run() {
    float even[64], odd[64];
    for (RowTiles<F> rows(rank); rows.any(a); rows.advance()) {
      scores.clear();
      if (F::kOneTile) {
        multiply(even, odd, 0, rows.parity);
        finish(even, 0);
      } else {
        for (int tile = 0;; tile += 2) {
          multiply(even, odd, tile, rows.parity);
          if (tile + 1 == a.column_tiles) {
            finish(even, tile);
            break;
          }
          multiply(odd, even, tile + 1, rows.parity);
          if (tile + 2 == a.column_tiles) {
            finish(odd, tile + 1);
            break;
          }
        }
      }
      // The first two threads of a quad have its two rows.
      const Best even = scores.of_row(0), odd = scores.of_row(1);
      const int thread = thread_index_again(), half = thread % 2;
      const int row = rows.tile * F::kRows + row_of(thread, half);
      const bool exists = thread % 4 < 2 && row < a.num_rows;
      const int first = thread % 32 / 4 * 4 + 2 * half;
      Squares squares = {from_lane(sum, first), 0};
      if (!F::Source::kExact) squares.rest = from_lane(sum, first + 1);
      const Best best = {half ? odd.score : even.score, half ? odd.next : even.next,
                         half ? odd.id : even.id};
      decide<F::kEuclidean>(a, row, exists, best, squares);
    }
  }
};

}  // namespace clustermim::hopper
