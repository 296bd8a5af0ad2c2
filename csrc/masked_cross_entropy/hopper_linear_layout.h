// What a block of the linear loss on Hopper is made of: sizes, places in shared memory, its tiles.
#pragma once

#include "hopper/instructions.h"
#include "hopper/operands.h"
#include "masked_cross_entropy/hopper_linear_arguments.h"

namespace clustermim::hopper {

// kType: of x, weight and dx. kClasses: a multiple of 16, at most 128. kDepth: columns of x and
// weight that a block has, 128 or 256. kCluster: blocks that share tokens, 1 or 2. kInput, kWeight:
// dX and dW are made.
template <Half kType_, int kClasses_, int kDepth_, int kCluster_, bool kInput_, bool kWeight_>
struct Linear {
  static constexpr Half kType = kType_;
  static constexpr int kClasses = kClasses_, kDepth = kDepth_, kCluster = kCluster_;
  static constexpr bool kInput = kInput_, kWeight = kWeight_, kGradient = kInput || kWeight;

  // dZ as an operand is multiplied by this: at most 1, float16's is kept away from its subnormals.
  static constexpr float kShift = kType == Half::float16 ? 0x1p15f : 1.0f;
  static constexpr int kRows = 64;             // of a tile: tokens
  static constexpr int kStages = 3;            // tiles of x in shared memory, a warp for each
  static constexpr int kChunks = kDepth / 64;  // of x and weight: 64 columns
  static constexpr int kChunkBytes = kRows * 128, kStageBytes = kChunks * kChunkBytes;
  static constexpr int kWeightBytes = kClasses * 128;     // of a chunk
  static constexpr int kDzChunks = (kClasses + 63) / 64;  // of dZ: 64 classes
  static constexpr int kDzBytes = kGradient ? kDzChunks * kChunkBytes : 0;
  static constexpr int kInboxBytes = kCluster == 2 ? 128 * kClasses : 0;
  static constexpr int kRowBytes = kRows * 8;  // token and target of each

  static constexpr int kSums = kClasses / 2;        // logits of a thread, of two rows
  static constexpr int kValues = kClasses / 4;      // of one row
  static constexpr int kColumnTiles = kChunks / 2;  // of dW, of a warpgroup: 64 columns of x

  // Of dX, made at a time: more would not fit the registers beside the most of dW.
  static constexpr int kInputColumns = kWeight && kClasses == 128 ? 64 : 128;

  static constexpr int kThreads = 384;
  // Of each thread, passed on; a block has no more than its threads start with.
  static constexpr int kConsumerRegisters = 232, kOtherRegisters = 40;
  static constexpr int kBytes = kStages * (kStageBytes + kRowBytes) + kChunks * kWeightBytes +
                                2 * (kDzBytes + kInboxBytes) + 2 * kClasses * 4 +
                                (2 * kStages + 8) * 8;
  static_assert(kClasses % 16 == 0 && kClasses <= 128 && kDepth % 128 == 0 && kDepth <= 256);
};

// Places in shared memory. Of what there are two, warpgroup g has the g-th.
template <class F>
struct LinearMemory {
  Address start;  // a multiple of 1024

  CMIM_DEVICE Address stage(int s) const { return start + s * F::kStageBytes; }
  CMIM_DEVICE Address weight() const { return stage(F::kStages); }
  CMIM_DEVICE Address dz(int g) const {
    return weight() + F::kChunks * F::kWeightBytes + g * F::kDzBytes;
  }
  CMIM_DEVICE Address inbox(int g) const { return dz(2) + g * F::kInboxBytes; }
  CMIM_DEVICE Address token(int s, int row) const { return inbox(2) + s * F::kRowBytes + row * 8; }
  CMIM_DEVICE Address target(int s, int row) const { return token(s, row) + 4; }
  CMIM_DEVICE Address bias(int k) const { return token(F::kStages, 0) + k * 4; }
  CMIM_DEVICE Address chosen(int k) const { return bias(F::kClasses) + k * 4; }
  CMIM_DEVICE Address full(int s) const { return chosen(F::kClasses) + s * 8; }
  CMIM_DEVICE Address empty(int s) const { return full(F::kStages) + s * 8; }
  CMIM_DEVICE Address inbox_full(int g) const { return empty(F::kStages) + g * 8; }
  CMIM_DEVICE Address inbox_empty(int g) const { return inbox_full(2) + g * 8; }
  CMIM_DEVICE Address dz_full(int g) const { return inbox_empty(2) + g * 8; }
  CMIM_DEVICE Address dz_empty(int g) const { return dz_full(2) + g * 8; }
};

// What the blocks of a cluster share, in turn with the other clusters. `turn`: how many of the
// cluster's came before; where and in which round its stage is.
template <class F>
struct TokenTiles {
  int tile, turn = 0, stage = 0, round = 0;

  CMIM_DEVICE TokenTiles() : tile(block_index() / F::kCluster) {}
  CMIM_DEVICE bool any(int counted) const { return int64(tile) * F::kRows < counted; }
  CMIM_DEVICE void advance() {
    tile += num_blocks() / F::kCluster;
    ++turn;
    if (++stage == F::kStages) stage = 0, round ^= 1;
  }
  CMIM_DEVICE int last_stage() const { return (stage == 0 ? F::kStages : stage) - 1; }
};

// Of a warpgroup's threads: the warp, and the rows of a tile (of 64 columns in dW), two of each.
CMIM_DEVICE int warp_of_group() {
  return thread_index_again() / 32 % 4;
}
CMIM_DEVICE int row_of(int half) {
  return 16 * warp_of_group() + thread_index_again() % 32 / 4 + 8 * half;
}
CMIM_DEVICE bool is_first_lane() {
  return thread_index_again() % 32 == 0;
}

// Elements of x or dx before a token's.
CMIM_DEVICE int64 place_of(const LinearArguments& a, int token, int64 sample, int64 row) {
  return token / a.per_sample * sample + (a.prefix + token % a.per_sample) * row;
}

// How many tokens count; none where dX is there and stands: made for a grad_output of 1, it has
// been multiplied by a power of two (or 0 or inf), which rounds nothing.
CMIM_DEVICE int counted_of(const LinearArguments& a) {
  if (a.again && (bits_of(load(a.again)) & 0x7fffff) == 0) return 0;
  return static_cast<int>(load(a.counted));
}

}  // namespace clustermim::hopper
