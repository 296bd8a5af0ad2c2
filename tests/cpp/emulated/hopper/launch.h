// Runs a kernel's body: the clusters of a grid one after the other.
#pragma once

#include <cstring>

#include "hopper/machine.h"
#include "hopper/products.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define CMIM_POISON(from, bytes) ASAN_POISON_MEMORY_REGION(from, bytes)
#define CMIM_UNPOISON(from, bytes) ASAN_UNPOISON_MEMORY_REGION(from, bytes)
#else
#define CMIM_POISON(from, bytes) (void)(from), (void)(bytes)
#define CMIM_UNPOISON(from, bytes) (void)(from), (void)(bytes)
#endif

namespace clustermim::hopper::emulated {

constexpr uint32 room_of(uint32 shared_bytes) {
  return (shared_bytes + 2047) / 1024 * 1024;
}

// Registers of a thread as the compiler has them where a block fills a multiprocessor.
constexpr int registers_of(int threads) {
  return std::min(65536 / threads / 8 * 8, 255 / 8 * 8);
}

inline Block::Block(Cluster& of, const Shape& shape, int index)
    : cluster(of),
      shape(shape),
      index(index),
      rank(index % shape.cluster),
      memory(static_cast<unsigned char*>(std::aligned_alloc(1024, room_of(shape.shared_bytes)))),
      barriers(new Barrier[shape.shared_bytes / 8 + 1]),
      sync(shape.threads),
      running(shape.threads) {
  // NaN, of 16 and of 32 bits: what nothing wrote.
  std::memset(memory, 0xff, room_of(shape.shared_bytes));
  CMIM_POISON(memory + shape.shared_bytes, room_of(shape.shared_bytes) - shape.shared_bytes);
  for (int warp = 0; warp < shape.threads / 32; ++warp) warps.emplace_back();
}

inline Block::~Block() {
  CMIM_UNPOISON(memory, room_of(shape.shared_bytes));
  std::free(memory);
}

inline unsigned char* Block::at(Address address, uint32 bytes, uint32 alignment) const {
  if (address % alignment) CMIM_FAIL("address %u is no multiple of %u", address, alignment);
  if (address < kFirstAddress || address - kFirstAddress + bytes > shape.shared_bytes)
    CMIM_FAIL("%u bytes at %u of shared memory, of which the block has %u from %u on", bytes,
              address, shape.shared_bytes, kFirstAddress);
  return memory + (address - kFirstAddress);
}

inline Barrier& Block::barrier(Address address) {
  at(address, 8, 8);
  return barriers[(address - kFirstAddress) / 8];
}

inline Gate& Block::gate_of(int threads) {
  std::lock_guard hold(lock);
  return some_syncs.try_emplace(threads, threads).first->second;
}

template <class Body>
void run_thread(Block& block, int index, const Body& body) {
  Products products;
  Thread thread = {index,     index % 32,
                   &block,    &block.warps[index / 32],
                   &products, registers_of(block.shape.threads)};
  self = &thread;
  body(kFirstAddress);
  if (products.under_way()) CMIM_FAIL("the thread ends with products under way");
  if (!thread.copies.empty()) CMIM_FAIL("the thread ends with copy_words under way");
  if (--block.running == 0 && block.copies.load() != 0)
    CMIM_FAIL("the block ends with copies to or from its memory under way");
  if (block.last_remote.load() >= thread.cluster_syncs)
    CMIM_FAIL("the block ends without a cluster_sync after the other one's arrivals and copies");
  self = nullptr;
}

// body(Address): of the first byte of shared memory.
template <class Body>
void launch(const Shape& shape, const Body& body) {
  if (shape.blocks % shape.cluster || shape.cluster > 2 || shape.threads % 128 ||
      shape.threads > 1024 || shape.shared_bytes > kMostShared)
    fail_at("launch", "no such launch: %d blocks in clusters of %d, %d threads, %u bytes",
            shape.blocks, shape.cluster, shape.threads, shape.shared_bytes);
  for (int first = 0; first < shape.blocks; first += shape.cluster) {
    Cluster cluster(shape, first);
    std::vector<std::thread> threads;
    for (Block& block : cluster.blocks)
      for (int t = 0; t < shape.threads; ++t)
        threads.emplace_back([&block, &body, t] { run_thread(block, t, body); });
    for (std::thread& thread : threads) thread.join();
  }
}

}  // namespace clustermim::hopper::emulated
