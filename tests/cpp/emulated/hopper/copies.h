// Copies that end late: at a barrier (TMA and what a block sends to another), or when their thread
// waits for them.
#pragma once

#include <cstring>

#include "hopper/machine.h"

namespace clustermim::hopper {

// Here not opaque: a matrix of float16, of which boxes are copied; rows of a box are of 64 or 128
// bytes, and so is the swizzle.
struct TensorMap {
  const uint16* values;
  int64 rows, columns, row_stride;
  int box_rows, box_columns;
};

namespace emulated {

inline TensorMap box_map(const uint16* values, int64 rows, int64 columns, int64 row_stride,
                         int box_rows, int box_columns) {
  if (reinterpret_cast<uintptr_t>(values) % 16 || row_stride % 8 || box_rows > 256)
    fail_at("box_map", "rows of a TMA map begin at multiples of 16 bytes, 256 of them in a box");
  if (box_columns != 32 && box_columns != 64)
    fail_at("box_map", "rows of a box are 32 or 64 values here, got %d", box_columns);
  return {values, rows, columns, row_stride, box_rows, box_columns};
}

// What comes from another block comes between two cluster_syncs.
inline void note_remote(Block& to) {
  if (self->cluster_syncs == 0)
    CMIM_FAIL("the other block may not have begun: no cluster_sync came before");
  int seen = to.last_remote.load(std::memory_order_relaxed);
  while (seen < self->cluster_syncs && !to.last_remote.compare_exchange_weak(
                                           seen, self->cluster_syncs, std::memory_order_relaxed)) {
  }
}

inline void check(const char* problem, Block& block, Address barrier) {
  if (problem)
    CMIM_FAIL("%s: barrier at %u of block %d, %s", problem, barrier, block.index,
              block.barrier(barrier).describe().c_str());
}

inline void check_rank(int rank) {
  if (rank < 0 || rank >= self->block->cluster.size) CMIM_FAIL("no block %d in the cluster", rank);
}

// Stored words that the tensor cores, and copies, do not see yet are announced: the thread's, and
// those of its warp before it last met.
inline void check_stores(const char* before, bool of_warp = true) {
  if (self->unfenced || (of_warp && self->warp_unfenced))
    CMIM_FAIL("%s after store_words without make_visible_to_products", before);
}

inline void check_arrival() {
  if (!self->copies.empty()) CMIM_FAIL("an arrival with copy_words under way");
  check_stores("an arrival");
}

// `copy` writes `bytes` to `to` of a block.
template <class Copy>
void copy_late(Address to, int bytes, uint32 alignment, Address barrier, uint32 blocks,
               const Copy& copy) {
  for (Block& block : self->block->cluster.blocks) {
    if (!(blocks >> block.rank & 1)) continue;
    unsigned char* place = block.at(to, bytes, alignment);
    if (&block != self->block) note_remote(block);
    ++block.copies;
    late([&block, place, bytes, barrier, copy] {
      copy(place);
      --block.copies;
      check(block.barrier(barrier).complete(bytes), block, barrier);
    });
  }
}

inline void load_box(Address to, const TensorMap& map, int column, int row, Address barrier,
                     uint32 blocks) {
  const int bytes = map.box_rows * map.box_columns * 2;
  copy_late(to, bytes, 16 * map.box_columns, barrier, blocks, [=](unsigned char* place) {
    for (int r = 0; r < map.box_rows; ++r)
      for (int chunk = 0; chunk < map.box_columns / 8; ++chunk) {
        uint16 halves[8];
        for (int i = 0; i < 8; ++i) {
          const int64 y = int64(row) + r, x = int64(column) + 8 * chunk + i;
          const bool inside = y >= 0 && y < map.rows && x >= 0 && x < map.columns;
          halves[i] = inside ? map.values[y * map.row_stride + x] : uint16(0);
        }
        const uint32 plain = r * map.box_columns * 2 + chunk * 16;
        const uint32 mask = map.box_columns / 8 - 1;
        std::memcpy(place + (plain ^ (((to + plain) >> 7 & mask) << 4)), halves, 16);
      }
  });
}

inline void send_bytes(Address to, Address from, int bytes, Address barrier, int rank) {
  check_rank(rank);
  check_stores("a copy");
  if (bytes % 16) CMIM_FAIL("a copy of bytes that are no multiple of 16");
  Block& block = *self->block;
  const unsigned char* source = block.at(from, bytes, 16);
  ++block.copies;
  copy_late(to, bytes, 16, barrier, 1u << rank, [&block, source, bytes](unsigned char* place) {
    std::memcpy(place, source, bytes);
    --block.copies;
  });
}

inline void copy_words(Address to, const void* from, bool exists) {
  if (reinterpret_cast<uintptr_t>(from) % 16) CMIM_FAIL("16 bytes that are not aligned are copied");
  unsigned char* place = self->block->at(to, 16, 16);
  std::memset(place, 0xff, 16);  // what is there from now on until it is waited for
  self->copies.push_back({place, exists ? from : nullptr});
}

inline void copies_wait() {
  for (const WordsCopy& copy : self->copies)
    if (copy.from)
      std::memcpy(copy.to, copy.from, 16);
    else
      std::memset(copy.to, 0, 16);
  self->unfenced |= !self->copies.empty();
  self->copies.clear();
}

}  // namespace emulated
}  // namespace clustermim::hopper
