// The warps of the Hopper filter that read rows and round them.
#pragma once

#include "hopper/instructions.h"
#include "hopper/operands.h"
#include "nearest_centroid/hopper_arguments.h"
#include "nearest_centroid/hopper_layout.h"
#include "nearest_centroid/hopper_rows.h"

namespace clustermim::hopper {

// Eight lanes share a row of a chunk, and lanes have the same rows of every chunk.
template <class F>
struct Converter {
  using Source = typename F::Source;
  static constexpr int kGroups = 4 * F::kConverters;
  // Rows that are read before the first is rounded. One tile: all of a lane's, and of small ones
  // those of the next chunk as well, so that enough is on its way from memory.
  static constexpr int kAtOnce = F::kOneTile ? F::kRows / kGroups : Source::kAtOnce;
  static constexpr bool kAhead =
      F::kOneTile && Source::kAligned && sizeof(typename Source::Raw) <= 16;

  const FilterArguments& a;
  Memory<F> memory;
  int group, part;

  CMIM_DEVICE Converter(const FilterArguments& a, Memory<F> memory) : a(a), memory(memory) {
    const int thread = thread_index() - 32 * F::kFirstConverter;
    group = thread / 8, part = thread % 8;
  }

  // Where rows begin, from `first` on every kGroups-th. Beyond the last it is the last once more:
  // nothing is decided about those.
  struct Rows {
    int64 start[kAtOnce];
  };
  CMIM_DEVICE int64 start_of(int row) const {
    return Source::start(a, row < a.num_rows ? row : a.num_rows - 1);
  }
  CMIM_DEVICE Rows rows_from(int first) const {
    Rows rows;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) rows.start[i] = start_of(first + i * kGroups);
    return rows;
  }
  struct Values {
    typename Source::Raw raw[kAtOnce];
  };
  CMIM_DEVICE Values read(const Rows& rows, const typename Source::Columns& columns) const {
    Values values;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) values.raw[i] = Source::read(a, columns, rows.start[i]);
    return values;
  }
  CMIM_DEVICE typename Source::Columns columns(int chunk) const {
    return Source::columns(a, 64 * chunk + 8 * part);
  }

  // Adds up what the eight lanes of each row have, and stores it or adds it to what is stored. Of
  // all sums a lane keeps half and hands on the other half, until one is left.
  CMIM_DEVICE void store_sums(int first, const Squares (&squares)[kAtOnce], bool add) const {
    constexpr int kEach = Source::kExact ? 1 : 2, kSums = kEach * kAtOnce;
    float sums[kSums];
#pragma unroll
    for (int i = 0; i < kSums; ++i)
      sums[i] = i % kEach ? squares[i / kEach].rest : squares[i / kEach].kept;
#pragma unroll
    for (int with = 4, left = kSums; with > 0; with /= 2) {
      if (left == 1) {
        sums[0] += from_lane_xor(sums[0], with);
        continue;
      }
      left /= 2;
      const bool upper = part & with;
#pragma unroll
      for (int i = 0; i < left; ++i) {
        const float kept = upper ? sums[left + i] : sums[i];
        sums[i] = kept + from_lane_xor(upper ? sums[i] : sums[left + i], with);
      }
    }
    const int which = part * kSums / 8, row = first + which / kEach * kGroups;
    if (part * kSums % 8 != 0 || row >= F::kRows) return;
    const Address at = memory.sums(row) + which % kEach * 4;
    store_float(at, add ? sums[0] + load_float(at) : sums[0]);
  }
  CMIM_DEVICE void end_chunk(int chunk) const {
    make_visible_to_products();
    warp_sync();
    if (thread_index() % 32 == 0) barrier_arrive(memory.chunk_full(chunk));
  }

  // A tile's rows are used once: the time is that of reading. Values that are read one by one are
  // so only when they are rounded: they take many registers.
  CMIM_DEVICE void run_one_tile(int rank) {
    constexpr bool kEarly = Source::kAligned;
    Squares sums[kAtOnce];
    RowTiles<F> tile(rank);
    Rows rows = rows_from(tile.tile * F::kRows + group);
    typename Source::Columns these = columns(0);
    Values values;
    if (kEarly) values = read(rows, these);
    for (int chunk = 0; tile.any(a);) {
      const int next = chunk + 1 == F::kChunks ? 0 : chunk + 1;
      const RowTiles<F> now = tile;
      if (next == 0) {
        tile.advance();
        rows = rows_from(tile.tile * F::kRows + group);
      }
      const typename Source::Columns those = columns(kEarly ? next : opaque(chunk));
      if (!kEarly) these = those;
      Values coming;
      if (kAhead) coming = read(rows, those);
      barrier_wait(memory.chunk_empty(chunk), now.parity ^ 1);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int row = group + i * kGroups;
        if (chunk == 0) sums[i] = Squares();
        if (!kEarly)
          values.raw[i] = Source::read(a, these, start_of(opaque(now.tile) * F::kRows + row));
        store_words(memory.chunk(chunk) + swizzled_128(row, part),
                    Source::round(a, values.raw[i], these, sums[i]));
      }
      if (next == 0) store_sums(group, sums, false);
      end_chunk(chunk);
      if (kEarly) values = kAhead ? coming : read(rows, those);
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
          Squares squares[kAtOnce];
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i) {
            const int row = first + i * kGroups;
            const Words halves = Source::round(a, values.raw[i], these, squares[i]);
            if (row < F::kRows) store_words(memory.chunk(chunk) + swizzled_128(row, part), halves);
          }
          store_sums(first, squares, chunk != 0);
        }
        end_chunk(chunk);
      }
    }
  }
};

}  // namespace clustermim::hopper
