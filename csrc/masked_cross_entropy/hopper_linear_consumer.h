// The two warpgroups of the linear loss: products, and between them the softmax.
#pragma once

#include "hopper/instructions.h"
#include "hopper/operands.h"
#include "masked_cross_entropy/hopper_linear_arguments.h"
#include "masked_cross_entropy/hopper_linear_inputs.h"
#include "masked_cross_entropy/hopper_linear_layout.h"
#include "masked_cross_entropy/hopper_linear_softmax.h"
#include "masked_cross_entropy/hopper_linear_totals.h"

namespace clustermim::hopper {

// They take tiles in turn. dW of a tile is made by both, each for its columns of x, so that the
// one's products run beside the other's softmax.
template <class F>
struct LinearConsumer {
  using Sums = float[F::kColumnTiles][F::kSums];
  const LinearArguments& a;
  LinearMemory<F> memory;
  int rank, group, counted;
  LinearTotals<F> totals;

  CMIM_DEVICE LinearConsumer(const LinearArguments& a, LinearMemory<F> memory, int rank, int group)
      : a(a), memory(memory), rank(rank), group(group), counted(counted_of(a)) {}

  CMIM_DEVICE void multiply_logits(int stage, float (&logits)[F::kSums]) {
    products_fence();
    const Operand x(memory.stage(stage), Swizzle::bytes_128);
    const Operand weight(memory.weight(), Swizzle::bytes_128);
#pragma unroll
    for (int c = 0; c < F::kChunks; ++c)
#pragma unroll
      for (int k = 0; k < 4; ++k)
        product<F::kType, Major::k, Major::k>(logits, x.descriptor(c * F::kChunkBytes + 32 * k),
                                              weight.descriptor(c * F::kWeightBytes + 32 * k),
                                              c > 0 || k > 0);
    products_commit();
    products_wait<0>();
    products_are_in(logits);
  }

  // Starts this group's columns of dW += x^T dZ for a tile of group `of`.
  CMIM_DEVICE void multiply_weight(int stage, int of, Sums& dw) {
    products_fence();
#pragma unroll
    for (int m = 0; m < F::kColumnTiles; ++m) {
      const int chunk = group * F::kColumnTiles + m;
      const Operand x = Operand::mn(memory.stage(stage) + chunk * F::kChunkBytes, 0);
      const Operand dz = Operand::mn(memory.dz(of), F::kChunkBytes);
#pragma unroll
      for (int k = 0; k < F::kRows / 16; ++k)
        product<F::kType, Major::mn, Major::mn>(dw[m], x.descriptor(2048 * k),
                                                dz.descriptor(2048 * k), true);
    }
    products_commit();
  }

  CMIM_DEVICE void finish_weight(Sums& dw) {
    products_wait<0>();
#pragma unroll
    for (int m = 0; m < F::kColumnTiles; ++m) products_are_in(dw[m]);
  }

  // A tile of the other group: the `turn`-th.
  CMIM_DEVICE void add_others(int stage, int turn, Sums& dw) {
    barrier_wait(memory.dz_full(group ^ 1), turn / 2 % 2);
    multiply_weight(stage, group ^ 1, dw);
    finish_weight(dw);
    release(stage);
  }

  // Every warp for itself: one that lags may still be reading.
  CMIM_DEVICE void release(int stage) {
    warp_sync();
    if (is_first_lane()) barrier_arrive(memory.empty(stage));
  }

  // A tile of the other group that this one has no part in. It is waited for all the same: a stage
  // comes back to a group after two rounds, whose parities are alike.
  CMIM_DEVICE void pass(const TokenTiles<F>& tiles) {
    barrier_wait(memory.full(tiles.stage), tiles.round);
    release(tiles.stage);
  }

  // Of each block's part of the logits, the other gets those of its rows.
  CMIM_DEVICE void send(const float (&logits)[F::kSums], float (&mine)[F::kValues], int parity) {
    barrier_wait(memory.inbox_empty(group), parity ^ 1);
    if (thread_index_again() % 128 == 0)
      barrier_arrive_expect(memory.inbox_full(group), F::kInboxBytes);
    const Address to = memory.inbox(group) + thread_index_again() % 128 * 16;
#pragma unroll
    for (int i = 0; i < F::kValues; i += 4) {
      Words words;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int at = (i + j) / 2 * 4 + j % 2;
        mine[i + j] = rank ? logits[at + 2] : logits[at];
        words.w[j] = bits_of(rank ? logits[at] : logits[at + 2]);
      }
      send_words(to + i * 512, words, memory.inbox_full(group), rank ^ 1);
    }
  }

  CMIM_DEVICE void receive(float (&mine)[F::kValues], int parity) {
    barrier_wait(memory.inbox_full(group), parity);
    const Address from = memory.inbox(group) + thread_index_again() % 128 * 16;
#pragma unroll
    for (int i = 0; i < F::kValues; i += 4) {
      const Words words = load_words_of(from + i * 512);
#pragma unroll
      for (int j = 0; j < 4; ++j) mine[i + j] += float_of_bits(words.w[j]);
    }
    warp_sync();
    if (is_first_lane()) barrier_arrive_of(memory.inbox_empty(group), rank ^ 1);
  }

  // Rounds and stores a row of dZ.
  CMIM_DEVICE void store_dz(int row, const float (&values)[F::kValues]) {
    const Address to = memory.dz(group) + row * 128 + thread_index_again() % 4 * 4;
#pragma unroll
    for (int g = 0; g < F::kValues / 2; ++g) {
      const uint32 pair =
          to_16_bits<F::kType>(values[2 * g] * F::kShift, values[2 * g + 1] * F::kShift);
      store_word(to + g / 8 * F::kChunkBytes + ((g ^ row) % 8) * 16, pair);
    }
  }

  // Each warp's rows go to the other block, too.
  CMIM_DEVICE void hand_dz_on() {
    make_visible_to_products();
    warp_sync();
    if (!is_first_lane()) return;
    if (F::kCluster == 2) {
#pragma unroll
      for (int c = 0; c < F::kDzChunks; ++c) {
        const Address at =
            memory.dz(group) + c * F::kChunkBytes + (2 * warp_of_group() + rank) * 1024;
        send_bytes(at, at, 1024, memory.dz_full(group), rank ^ 1);
      }
    }
    barrier_arrive_expect(memory.dz_full(group), F::kCluster == 2 ? F::kDzChunks * 1024 : 0);
  }

  CMIM_DEVICE void run_softmax(const Token& token, int row, float (&values)[F::kValues]) {
    Softmax<F>(a, memory).run(token, values, totals);
    if (F::kGradient) store_dz(row, values);
    if (a.db) totals.add_classes(values);
  }

  CMIM_DEVICE void run_tile(const TokenTiles<F>& tiles, Sums& dw) {
    const int stage = tiles.stage, parity = tiles.turn / 2 % 2;
    float logits[F::kSums], mine[F::kValues];
    barrier_wait(memory.full(stage), tiles.round);
    multiply_logits(stage, logits);
    // All of its warps have read this group's last gradients: either block may write the next. Of
    // the other group they have once its own are there, which add_others waits for.
    if (F::kGradient) barrier_wait(memory.dz_empty(group), parity ^ 1);
    if (F::kCluster == 2) send(logits, mine, parity);
    if (F::kWeight && tiles.turn > 0) add_others(tiles.last_stage(), tiles.turn - 1, dw);
    if constexpr (F::kCluster == 2) {
      const Token token = token_of(a, memory, tiles, row_of(rank), counted);
      receive(mine, parity);
      run_softmax(token, row_of(rank), mine);
    } else {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int i = 0; i < F::kValues; ++i) mine[i] = logits[i / 2 * 4 + 2 * h + i % 2];
        run_softmax(token_of(a, memory, tiles, row_of(h), counted), row_of(h), mine);
      }
    }
    if (F::kGradient) {
      hand_dz_on();
      barrier_wait(memory.dz_full(group), parity);
    }
    InputRows<F> inputs;
    if (F::kInput) inputs = InputRows<F>(a, memory, tiles, counted);
    if (F::kWeight) {
      multiply_weight(stage, group, dw);
      finish_weight(dw);
    }
    release(stage);
    if (F::kInput) inputs.make(a, memory, group, rank);
    if (F::kGradient && is_first_lane()) barrier_arrive(memory.dz_empty(group));
  }

  // This group's columns of dW of all the cluster's tiles.
  CMIM_DEVICE void store_weight(const Sums& dw) {
    const float scale = load(a.factor) / F::kShift;
    float* const part = a.parts + int64(block_index() / F::kCluster) * a.num_classes * a.dim;
#pragma unroll
    for (int m = 0; m < F::kColumnTiles; ++m)
#pragma unroll
      for (int i = 0; i < F::kSums; ++i) {
        const int column =
            rank * F::kDepth + (group * F::kColumnTiles + m) * 64 + row_of(i / 2 % 2);
        const int k = 8 * (i / 4) + 2 * (thread_index_again() % 4) + i % 2;
        if (column < a.dim && k < a.num_classes) part[int64(k) * a.dim + column] = dw[m][i] * scale;
      }
  }

  CMIM_DEVICE void run() {
    Sums dw;
#pragma unroll
    for (int m = 0; m < F::kColumnTiles; ++m)
#pragma unroll
      for (int i = 0; i < F::kSums; ++i) dw[m][i] = 0;
    TokenTiles<F> tiles;
    for (; tiles.any(counted); tiles.advance())
      if (tiles.turn % 2 == group)
        run_tile(tiles, dw);
      else if (!F::kWeight)
        pass(tiles);
    if (F::kWeight) {
      // The last tile, where it is the other group's.
      if (tiles.turn > 0 && tiles.turn % 2 == group)
        add_others(tiles.last_stage(), tiles.turn - 1, dw);
      store_weight(dw);
    }
    if (a.sums || a.db || a.correct) totals.store(a, memory);
  }
};

}  // namespace clustermim::hopper
