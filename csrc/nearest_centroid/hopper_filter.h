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
#include "hopper/operands.h"
#include "nearest_centroid/hopper_arguments.h"
#include "nearest_centroid/hopper_decide.h"
#include "nearest_centroid/hopper_rows.h"
#include "nearest_centroid/hopper_scores.h"

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
  static constexpr int kSteps = kDepth / 32;   // of a tile of centroids: [128, 32], a ring's slot
  static constexpr int kChunkBytes = kRows * 128, kStepBytes = kColumns * 64;
  static constexpr int kBiasBytes = kColumns * 4;

  static constexpr int kConverters = kOneTile ? 8 : 3;  // warps
  static constexpr int kFirstConverter = kOneTile ? 4 : 1;
  static constexpr int kConsumers = kOneTile ? 3 : 1;  // the first of two warpgroups
  static constexpr int kThreads = (kConsumers + 2) * 128;
  // Of a warpgroup's threads; 65536 together.
  static constexpr int kConsumerRegisters = kOneTile ? 128 : 224;
  static constexpr int kOtherRegisters = kOneTile ? 24 : 56;

  static constexpr int biases_of(int stages) { return (stages + kSteps - 1) / kSteps + 2; }
  static constexpr int kSums = kOneTile ? 2 : 1;
  static constexpr int bytes_of(int stages) {
    return kChunks * kChunkBytes + stages * kStepBytes + biases_of(stages) * kBiasBytes +
           kSums * kRows * 8 + (2 * stages + 2 * kChunks + 1) * 8;
  }
  static constexpr int kMostBytes = 232448;  // of a block on sm_90
  static constexpr int most_stages() {
    int stages = 16;
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
  CMIM_DEVICE Address sums(int parity, int row) const {
    return bias(F::kBiases) + (parity % F::kSums * F::kRows + row) * 8;
  }
  CMIM_DEVICE Address full(int s) const { return sums(F::kSums - 1, F::kRows) + s * 8; }
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

// ---- one thread: tiles of centroids
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
          load_box(stage, centroids, step * 32, row, full);
        } else {  // half of it, to both
          load_box_of(stage + rank * (F::kStepBytes / 2), centroids, step * 32,
                      row + rank * (F::kColumns / 2), full, 3);
        }
      }
    }
  }
}

// ---- some warps: rows
// Eight lanes share a row of a chunk, and lanes have the same rows of every chunk.
template <class F>
struct Converter {
  using Source = typename F::Source;
  static constexpr int kGroups = 4 * F::kConverters;
  // Rows that are read before the first is rounded. One tile: all of a lane's, and of small ones
  // those of the next chunk as well, so that enough is on its way from memory.
  static constexpr int kAtOnce = F::kOneTile ? F::kRows / kGroups : Source::kAtOnce;
  static constexpr bool kAhead = F::kOneTile && sizeof(typename Source::Raw) <= 16;

  const FilterArguments& a;
  Memory<F> memory;
  int group, part;

  CMIM_DEVICE Converter(const FilterArguments& a, Memory<F> memory) : a(a), memory(memory) {
    const int thread = thread_index() - 32 * F::kFirstConverter;
    group = thread / 8, part = thread % 8;
  }

  // From `first` on, every kGroups-th; all that come first are there or are not.
  struct Rows {
    int64 start[kAtOnce];
    int first, num_rows;
  };
  CMIM_DEVICE Rows rows_from(int first) const {
    Rows rows;
    rows.first = first, rows.num_rows = a.num_rows;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) rows.start[i] = Source::start(a, first + i * kGroups);
    return rows;
  }
  struct Values {
    typename Source::Raw raw[kAtOnce];
  };
  CMIM_DEVICE Values read(const Rows& rows, const typename Source::Columns& columns) const {
    Values values;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      values.raw[i] =
          Source::read(a, columns, rows.start[i], rows.first + i * kGroups < rows.num_rows);
    return values;
  }
  CMIM_DEVICE typename Source::Columns columns(int chunk) const {
    return Source::columns(a, 64 * chunk + 8 * part);
  }

  // Of the eight lanes of a row.
  static CMIM_DEVICE Squares sum_of(Squares squares) {
#pragma unroll
    for (int with = 1; with < 8; with *= 2) {
      squares.kept += from_lane_xor(squares.kept, with);
      if (!Source::kExact) squares.rest += from_lane_xor(squares.rest, with);
    }
    return squares;
  }
  CMIM_DEVICE void store_sum(int parity, int row, Squares squares, bool add) const {
    const Address sums = memory.sums(parity, row);
    if (add) {
      squares.kept += load_float(sums);
      if (!Source::kExact) squares.rest += load_float(sums + 4);
    }
    store_float(sums, squares.kept);
    store_float(sums + 4, squares.rest);
  }
  CMIM_DEVICE void end_chunk(int chunk) const {
    make_visible_to_products();
    warp_sync();
    if (thread_index() % 32 == 0) barrier_arrive(memory.chunk_full(chunk));
  }

  // A tile's rows are used once: the time is that of reading.
  CMIM_DEVICE void run_one_tile(int rank) {
    Squares sums[kAtOnce];
    RowTiles<F> tile(rank);
    Rows rows = rows_from(tile.tile * F::kRows + group);
    typename Source::Columns these = columns(0);
    Values values = read(rows, these);
    for (int chunk = 0; tile.any(a);) {
      const int next = chunk + 1 == F::kChunks ? 0 : chunk + 1;
      const RowTiles<F> now = tile;
      if (next == 0) {
        tile.advance();
        rows = rows_from(tile.tile * F::kRows + group);
      }
      const typename Source::Columns those = columns(next);
      Values coming;
      if (kAhead) coming = read(rows, those);
      barrier_wait(memory.chunk_empty(chunk), now.parity ^ 1);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int row = group + i * kGroups;
        if (chunk == 0) sums[i] = Squares();
        store_words(memory.chunk(chunk) + swizzled_128(row, part),
                    Source::round(a, values.raw[i], these, sums[i]));
        if (next != 0) continue;
        const Squares sum = sum_of(sums[i]);
        if (part == 0) store_sum(now.parity, row, sum, false);
      }
      end_chunk(chunk);
      values = kAhead ? coming : read(rows, those);
      these = those;
      chunk = next;
    }
  }

  // The rows of the next tile are asked for early, so that reading them takes L2's latency.
  CMIM_DEVICE void run(int rank) {
    for (RowTiles<F> tile(rank); tile.any(a); tile.advance()) {
      const int next = (tile.tile + num_blocks()) * F::kRows;
      for (int row = group; part == 0 && row < F::kRows; row += kGroups)
        Source::prefetch(a, next + row);
#pragma unroll 1
      for (int chunk = 0; chunk < F::kChunks; ++chunk) {
        const typename Source::Columns these = columns(chunk);
#pragma unroll 1
        for (int first = group; first - group < F::kRows; first += kAtOnce * kGroups) {
          const Values values = read(rows_from(tile.tile * F::kRows + first), these);
          if (first == group) barrier_wait(memory.chunk_empty(chunk), tile.parity ^ 1);
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i) {
            const int row = first + i * kGroups;
            Squares squares;
            const Words halves = Source::round(a, values.raw[i], these, squares);
            squares = sum_of(squares);
            if (row >= F::kRows) continue;
            store_words(memory.chunk(chunk) + swizzled_128(row, part), halves);
            if (part == 0) store_sum(tile.parity, row, squares, chunk != 0);
          }
        }
        end_chunk(chunk);
      }
    }
  }
};

// ---- two warpgroups: products and scores
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
    if (is_first && step % 2 == 0) barrier_wait(memory.chunk_full(step / 2), row_parity);
    barrier_wait(memory.full(ring.at), ring.parity);
    products_fence();
    const Operand row(memory.chunk(0) + group * (F::kChunkBytes / 2), Swizzle::bytes_128);
    const Operand column(memory.stage(0), Swizzle::bytes_64);
#pragma unroll
    for (int k = 0; k < 2; ++k)
      product_64x128x16(sums, row.descriptor(step / 2 * F::kChunkBytes + step % 2 * 64 + 32 * k),
                        column.descriptor(ring.at * F::kStepBytes + 32 * k), step > 0 || k > 0);
    products_commit();
    products_wait<1>();
    if (step > 0 || !is_first) release_stage();
    if (is_last && step > 0 && step % 2 == 0) release_chunk(step / 2 - 1);
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
#pragma unroll 2
    for (int step = kSpread; step < F::kSteps; ++step)
      start_step(sums, step, is_first, is_last, lag_step, row_parity);
    if (is_first) {
      const int thread = thread_index_again(), q = thread % 4;
      sum = load_float(memory.sums(row_parity, row_of(thread, q / 2)) + q % 2 * 4);
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
      const int thread = thread_index_again();
      const Facts facts(a);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = rows.tile * F::kRows + row_of(thread, h);
        const bool exists = thread % 4 == 0 && row < a.num_rows;
        const int first = thread % 32 / 4 * 4 + 2 * h;
        const Squares squares = {from_lane(sum, first), from_lane(sum, first + 1)};
        decide<F::kEuclidean>(a, facts, row, exists, scores.of_row(h), squares);
      }
    }
  }
};

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
