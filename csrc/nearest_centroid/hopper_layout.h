// What a block of the Hopper filter is made of: sizes, places in shared memory, whose turn it is.
#pragma once

#include "hopper/instructions.h"
#include "hopper/operands.h"
#include "nearest_centroid/hopper_arguments.h"

namespace clustermim::hopper {

// Source: hopper_rows.h. kDepth: values of a packed row, a multiple of 64. kCluster: blocks that
// share tiles of centroids, 1 or 2. kOneTile: there are at most 128 centroids, so that reading rows
// takes the time, and more warps do it.
template <class Source_, int kDepth_, int kCluster_, bool kEuclidean_, bool kOneTile_>
struct Filter {
  using Source = Source_;
  static constexpr int kDepth = kDepth_, kCluster = kCluster_;
  static constexpr bool kEuclidean = kEuclidean_, kOneTile = kOneTile_;

  static constexpr int kRows = 128, kColumns = 128;
  static constexpr int kChunks = kDepth / 64;  // of rows: [128, 64]
  // Of a tile of centroids, [128, kStep], a ring's slot: small where rows leave little room,
  // or where the larger one would spill.
  static constexpr int kStep = kDepth > 640 || kDepth == 256 ? 32 : 64, kSteps = kDepth / kStep;
  static constexpr int kStepsOfChunk = 64 / kStep;
  static constexpr Swizzle kSwizzle = kStep == 64 ? Swizzle::bytes_128 : Swizzle::bytes_64;
  static constexpr int kChunkBytes = kRows * 128, kStepBytes = kColumns * kStep * 2;
  static constexpr int kBiasBytes = kColumns * 4;

  static constexpr int kConverters = kOneTile ? 8 : 3;  // warps
  static constexpr int kFirstConverter = kOneTile ? 4 : 1;
  static constexpr int kConsumers = kOneTile ? 3 : 1;  // the first of two warpgroups
  static constexpr int kThreads = (kConsumers + 2) * 128;
  // Of each thread, passed on; a block has no more than its threads start with.
  static constexpr int kConsumerRegisters = kOneTile ? 128 : 224;
  static constexpr int kOtherRegisters = kOneTile ? 24 : 56;

  static constexpr int biases_of(int stages) { return (stages + kSteps - 1) / kSteps + 2; }
  static constexpr int bytes_of(int stages) {
    return kChunks * kChunkBytes + stages * kStepBytes + biases_of(stages) * kBiasBytes +
           kRows * 8 + (2 * stages + 2 * kChunks + 1) * 8;
  }
  static constexpr int kMostBytes = 232448;  // of a block on sm_90
  static constexpr int most_stages() {
    int stages = 512 / kStep;
    while (bytes_of(stages) > kMostBytes) --stages;
    return stages;
  }
  static constexpr int kStages = most_stages();
  // Steps by which the second warpgroup is behind, so that one multiplies while the other decides
  // about its rows.
  static constexpr int kLag = kStages / 2 < 2 * kSteps - 1 ? kStages / 2 : 2 * kSteps - 1;
  static constexpr int kBiases = biases_of(kStages);
  static constexpr int kBytes = bytes_of(kStages);
  static_assert(kDepth % 64 == 0 && kStages >= 3, "too deep to be kept in shared memory");
};

// Places in shared memory.
template <class F>
struct Memory {
  Address rows;  // a multiple of 1024

  CMIM_DEVICE Address chunk(int c) const { return rows + c * F::kChunkBytes; }
  CMIM_DEVICE Address stage(int s) const { return chunk(F::kChunks) + s * F::kStepBytes; }
  CMIM_DEVICE Address bias(int i) const { return stage(F::kStages) + i * F::kBiasBytes; }
  CMIM_DEVICE Address sums(int row) const { return bias(F::kBiases) + row * 8; }
  CMIM_DEVICE Address full(int s) const { return sums(F::kRows) + s * 8; }
  CMIM_DEVICE Address empty(int s) const { return full(F::kStages) + s * 8; }
  CMIM_DEVICE Address chunk_full(int c) const { return empty(F::kStages) + c * 8; }
  CMIM_DEVICE Address chunk_empty(int c) const { return chunk_full(F::kChunks) + c * 8; }
  CMIM_DEVICE Address lag() const { return chunk_empty(F::kChunks); }
};

// Where a role is in something that is used in turn: the place, and the parity of its round.
template <int kSize>
struct Turn {
  int at = 0, parity = 0;
  CMIM_DEVICE void advance() {
    if (++at == kSize) at = 0, parity ^= 1;
  }
  CMIM_DEVICE int last() const { return (at == 0 ? kSize : at) - 1; }
};

// The tiles of rows of this block; the blocks of a cluster have equally many.
template <class F>
struct RowTiles {
  int tile, parity = 0;
  CMIM_DEVICE RowTiles(int rank) : tile(block_index() / F::kCluster * F::kCluster + rank) {}
  CMIM_DEVICE bool any(const FilterArguments& a) const {
    return int64(tile / F::kCluster * F::kCluster) * F::kRows < a.num_rows;
  }
  CMIM_DEVICE void advance() { tile += num_blocks(), parity ^= 1; }
};

}  // namespace clustermim::hopper
