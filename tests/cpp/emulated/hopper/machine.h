// Blocks of threads on the CPU: an OS thread for each CUDA thread, all threads of a cluster at
// once.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "hopper/barriers.h"
#include "hopper/types.h"
#include "hopper/waiting.h"

namespace clustermim::hopper::emulated {

constexpr uint32 kMostShared = 232448;  // bytes that a block of sm_90 can have
constexpr Address kFirstAddress = 1024;

// What one thread set going and does not wait for: done late and in any order, by a thread for each
// thread that sets something going, so that nothing is ordered that it did not order itself.
class LateWork {
 public:
  explicit LateWork(uint32 seed) : random_(seed), worker_([this] { work(); }) {}
  ~LateWork() {
    {
      std::lock_guard hold(lock_);
      ending_ = true;
    }
    changed_.notify_one();
    worker_.join();
  }
  void add(std::function<void()> job) {
    {
      std::lock_guard hold(lock_);
      jobs_.push_back(std::move(job));
    }
    changed_.notify_one();
  }

 private:
  void work() {
    std::unique_lock hold(lock_);
    while (true) {
      changed_.wait(hold, [this] { return ending_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      hold.unlock();
      std::this_thread::sleep_for(std::chrono::microseconds(random_() % 64));
      hold.lock();
      std::swap(jobs_[random_() % jobs_.size()], jobs_.back());
      const std::function<void()> job = std::move(jobs_.back());
      jobs_.pop_back();
      hold.unlock();
      job();
      hold.lock();
    }
  }

  std::mutex lock_;
  std::condition_variable changed_;
  std::vector<std::function<void()>> jobs_;
  bool ending_ = false;
  std::minstd_rand random_;
  std::thread worker_;  // the last: it uses the others
};

struct Warp {
  Gate sync{32}, exchange{32};
  std::atomic<uint64> slots[2][32] = {};
  std::atomic<int> unfenced[2] = {-1,
                                  -1};  // number of the last warp_sync with such stores before it
};

struct Shape {
  int blocks = 1, threads = 128, cluster = 1;
  uint32 shared_bytes = 0;
};

struct Cluster;

struct Block {
  Block(Cluster& cluster, const Shape& shape, int index);
  ~Block();
  unsigned char* at(Address address, uint32 bytes, uint32 alignment) const;
  Barrier& barrier(Address address);
  Gate& gate_of(int threads);  // where so many of the block's meet

  Cluster& cluster;
  const Shape& shape;
  const int index, rank;
  unsigned char* memory;
  std::unique_ptr<Barrier[]> barriers;  // one for each 8 bytes
  std::deque<Warp> warps;
  Gate sync;
  std::map<int, Gate> some_syncs;
  std::mutex lock;
  std::atomic<int> running;
  std::atomic<int> copies{0};        // to or from this block, under way
  std::atomic<int> last_remote{-1};  // how many cluster_syncs came before what came from elsewhere
  std::atomic<uint32> registers{0};  // that none of the threads has
};

struct Cluster {
  Cluster(const Shape& shape, int first_block)
      : size(shape.cluster), sync(shape.cluster * shape.threads) {
    for (int rank = 0; rank < size; ++rank) blocks.emplace_back(*this, shape, first_block + rank);
  }
  LateWork& late_work() {
    std::lock_guard hold(lock);
    return late.emplace_back(static_cast<uint32>(late.size()) + 1);
  }

  const int size;
  Gate sync;
  std::deque<Block> blocks;
  std::mutex lock;
  std::deque<LateWork> late;
};

struct Products;

// 16 bytes of shared memory that a thread copies to; from nowhere: zeros.
struct WordsCopy {
  unsigned char* to;
  const void* from;
};

struct Thread {
  int index, lane;
  Block* block;
  Warp* warp;
  Products* products;
  int registers;
  int syncs = 0, cluster_syncs = 0;  // warp_syncs and cluster_syncs so far
  uint32 exchanges = 0;
  bool unfenced = false;               // stored words that the tensor cores do not see yet
  bool warp_unfenced = false;          // so had a thread of the warp at its last warp_sync
  std::vector<WordsCopy> copies = {};  // under way
  LateWork* late = nullptr;
};
inline thread_local Thread* self = nullptr;

inline std::string here() {
  if (!self) return "what came late";
  return "block " + std::to_string(self->block->index) + " thread " + std::to_string(self->index);
}
#define CMIM_FAIL(...) \
  ::clustermim::hopper::emulated::fail_at(::clustermim::hopper::emulated::here(), __VA_ARGS__)

inline void late(std::function<void()> job) {
  if (!self->late) self->late = &self->block->cluster.late_work();
  self->late->add(std::move(job));
}

}  // namespace clustermim::hopper::emulated
