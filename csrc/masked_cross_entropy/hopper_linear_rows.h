// The warps of the linear loss that fetch tokens, and the one that writes zeros where none counts.
#pragma once

#include "hopper/instructions.h"
#include "hopper/operands.h"
#include "masked_cross_entropy/hopper_linear_arguments.h"
#include "masked_cross_entropy/hopper_linear_layout.h"

namespace clustermim::hopper {

// -1 where the class is none, or its sample's mask is not what the caller said.
CMIM_DEVICE int class_of(const LinearArguments& a, int token) {
  const int64 target = a.target_bytes == 8 ? load(static_cast<const int64*>(a.target) + token)
                                           : load(static_cast<const int*>(a.target) + token);
  if (target < 0 || target >= a.num_classes) return -1;
  if (a.wrong && load(a.wrong + token / a.per_sample)) return -1;
  return static_cast<int>(target);
}

// A warp: the tiles of one stage.
template <class F>
CMIM_DEVICE void fetch_tokens(const LinearArguments& a, LinearMemory<F> memory, int rank,
                              int stage) {
  constexpr int kLanes = F::kDepth / 8, kAtOnce = 32 / kLanes;  // of a row; rows
  const int counted = counted_of(a), lane = thread_index() % 32, part = lane % kLanes;
  const int column = rank * F::kDepth + 8 * part;
  const uint16* const x = static_cast<const uint16*>(a.x) + column;
  for (TokenTiles<F> tiles; tiles.any(counted); tiles.advance()) {
    if (tiles.stage != stage) continue;
    const int left = counted - tiles.tile * F::kRows;  // rows
    int token[2];
    int64 place[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = h * 32 + lane;
      token[h] = row < left ? static_cast<int>(load(a.rows + tiles.tile * F::kRows + row)) : 0;
      place[h] = place_of(a, token[h], a.x_sample, a.x_row);
    }
    barrier_wait(memory.empty(stage), tiles.round ^ 1);
    const Address to = memory.stage(stage) + part / 8 * F::kChunkBytes;
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll 4
      for (int first = 0; first < 32; first += kAtOnce) {
        const int of = first + lane / kLanes, row = h * 32 + of;
        const int64 from = from_lane(place[h], of);
        copy_words(to + swizzled_128(row, part % 8), x + from, row < left && column < a.dim);
      }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = h * 32 + lane;
      store_int(memory.token(stage, row), token[h]);
      store_int(memory.target(stage, row), row < left ? class_of(a, token[h]) : -1);
    }
    copies_wait();
    make_visible_to_products();
    warp_sync();
    if (lane == 0) barrier_arrive(memory.full(stage));
  }
}

CMIM_DEVICE void write_zeros(const LinearArguments& a, int64 place) {
  uint16* const row = static_cast<uint16*>(a.dx) + place;
  for (int d = thread_index() % 32 * 8; d < a.dim; d += 256) store_words_at(row + d, Words());
}

// A warp: tokens that do not count, and prefixes.
template <class F>
CMIM_DEVICE void clear_the_rest(const LinearArguments& a) {
  const int counted = counted_of(a), lane = thread_index() % 32;
  for (int64 first = counted + int64(block_index()) * 32; first < a.num_tokens;
       first += int64(num_blocks()) * 32) {
    const int64 slot = first + lane;
    int token = 0;
    if (slot < a.num_tokens) {
      token = static_cast<int>(load(a.rows + slot));
      if (a.writes_losses) a.stats[slot] = a.stats[a.num_tokens + slot] = 0;
      if (a.each) a.each[token] = 0;
    }
    for (int i = 0; F::kInput && i < 32 && first + i < a.num_tokens; ++i)
      write_zeros(a, place_of(a, from_lane(token, i), a.dx_sample, a.dx_row));
  }
  const int64 prefixes = F::kInput ? int64(a.samples) * a.prefix : 0;
  for (int64 i = block_index(); i < prefixes; i += num_blocks())
    write_zeros(a, i / a.prefix * a.dx_sample + i % a.prefix * a.dx_row);
}

}  // namespace clustermim::hopper
