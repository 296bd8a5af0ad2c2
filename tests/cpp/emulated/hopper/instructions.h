// csrc/hopper/instructions.h for the CPU: the same names, which do as late as they may what they do
// on the GPU, and end the program with a sentence where a kernel breaks their rules.
//
// Blind spots: order of memory accesses on a GPU, beyond what races ThreadSanitizer sees; whatever
// the PTX manual was misread in (layouts of descriptors, swizzles, sums), on both sides alike.
#pragma once

#include "hopper/copies.h"
#include "hopper/launch.h"
#include "hopper/machine.h"
#include "hopper/products.h"

namespace clustermim::hopper {

namespace emulated {

inline void meet_warp(const char* at) {
  if (!self->warp->sync.meet<true>()) CMIM_FAIL("not all lanes of the warp came to %s", at);
}

// `read(slots)` of what the 32 lanes have; orders no other memory accesses.
template <class T, class Read>
auto exchange(T value, const char* at, const Read& read) {
  auto& slots = self->warp->slots[self->exchanges++ % 2];
  uint64 bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  slots[self->lane].store(bits, std::memory_order_relaxed);
  if (!self->warp->exchange.meet<false>()) CMIM_FAIL("not all lanes of the warp came to %s", at);
  return read([&slots](int lane) {
    const uint64 bits = slots[lane].load(std::memory_order_relaxed);
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  });
}

template <class T>
T value_of(T value, int lane, const char* at) {
  if (lane < 0 || lane > 31) CMIM_FAIL("lane %d in %s", lane, at);
  return exchange(value, at, [lane](const auto& of_lane) { return of_lane(lane); });
}

template <class T>
T& shared(Address at) {
  return *reinterpret_cast<T*>(self->block->at(at, sizeof(T), sizeof(T)));
}

inline void change_registers(int to, bool more) {
  const int from = self->registers;
  if (to % 8 || to < 24 || to > 256 || (more ? to < from : to > from))
    CMIM_FAIL("a thread that has %d registers %s %d", from, more ? "takes" : "keeps", to);
  meet_warp("setmaxnreg");
  std::atomic<uint32>& left = self->block->registers;
  if (!more) {
    left.fetch_add(from - to, kChanging);
    wake_sleepers(left);
  }
  const uint32 wanted = more ? to - from : 0;
  const auto end = deadline();
  for (uint32 seen = left.load(kReading);
       seen < wanted || !left.compare_exchange_weak(seen, seen - wanted, kChanging);
       seen = left.load(kReading)) {
    if (Clock::now() > end) CMIM_FAIL("%d registers a thread: not so many were given", to);
    if (seen < wanted) sleep_on(left, seen);
  }
  self->registers = to;
}

}  // namespace emulated

// ---- where a thread is
inline int thread_index() {
  return emulated::self->index;
}
inline int thread_index_again() {
  return thread_index();
}
inline int block_index() {
  return emulated::self->block->index;
}
inline int num_blocks() {
  return emulated::self->block->shape.blocks;
}
template <class T>
T uniform(T value) {
  return emulated::exchange(value, "uniform", [](const auto& of_lane) {
    using namespace emulated;
    for (int lane = 1; lane < 32; ++lane)
      if (of_lane(lane) != of_lane(0)) CMIM_FAIL("the lanes of a warp do not agree");
    return of_lane(0);
  });
}

// ---- shared memory
inline Address shared_address(const void* p) {
  return static_cast<Address>(static_cast<const uint8*>(p) - emulated::self->block->memory) +
         emulated::kFirstAddress;
}
inline void store_words(Address to, Words v) {
  emulated::self->unfenced = true;
  emulated::shared<Words>(to) = v;
}
inline Words load_words_of(Address from) {
  return emulated::shared<Words>(from);
}
inline void store_word(Address to, uint32 v) {
  emulated::self->unfenced = true;
  emulated::shared<uint32>(to) = v;
}
inline void store_float(Address to, float v) {
  emulated::shared<float>(to) = v;
}
inline float load_float(Address from) {
  return emulated::shared<float>(from);
}
inline void store_int(Address to, int v) {
  emulated::shared<int>(to) = v;
}
inline int load_int(Address from) {
  return emulated::shared<int>(from);
}
inline void store_double(Address to, double v) {
  emulated::shared<double>(to) = v;
}
inline double load_double(Address from) {
  return emulated::shared<double>(from);
}
inline void add_to_shared(Address to, int v) {
  std::atomic_ref<int>(emulated::shared<int>(to)).fetch_add(v, std::memory_order_relaxed);
}
inline void load_float2(Address from, float& a, float& b) {
  struct alignas(8) Pair {
    float a, b;
  };
  const Pair pair = emulated::shared<Pair>(from);
  a = pair.a, b = pair.b;
}

// ---- threads of a block, of a warp, of a cluster of blocks
inline void block_sync() {
  using namespace emulated;
  check_stores("block_sync", false);
  if (!self->block->sync.meet<true>()) CMIM_FAIL("not all threads of the block came to block_sync");
}
template <int kThreads>
void some_sync() {
  using namespace emulated;
  if (!self->block->gate_of(kThreads).meet<true>())
    CMIM_FAIL("not all %d threads came to some_sync", kThreads);
}
inline void warp_sync() {
  using namespace emulated;
  const int number = self->syncs++;
  std::atomic<int>& unfenced = self->warp->unfenced[number % 2];
  if (self->unfenced || !self->copies.empty()) unfenced.store(number, std::memory_order_relaxed);
  meet_warp("warp_sync");
  self->warp_unfenced = unfenced.load(std::memory_order_relaxed) == number;
}
template <class T>
T from_lane_xor(T v, int with) {
  return emulated::value_of(v, emulated::self->lane ^ with, "from_lane_xor");
}
template <class T>
T from_lane(T v, int lane) {
  return emulated::value_of(v, lane, "from_lane");
}
inline uint32 lanes_where(bool predicate) {
  return emulated::exchange(predicate, "lanes_where", [](const auto& of_lane) {
    uint32 lanes = 0;
    for (int lane = 0; lane < 32; ++lane) lanes |= uint32(of_lane(lane)) << lane;
    return lanes;
  });
}
inline int count_bits(uint32 v) {
  return std::popcount(v);
}
inline int cluster_rank() {
  return emulated::self->block->rank;
}
inline void cluster_sync() {
  using namespace emulated;
  check_stores("cluster_sync", false);
  if (!self->block->cluster.sync.meet<true>())
    CMIM_FAIL("not all threads of the cluster came to cluster_sync");
  ++self->cluster_syncs;
}

// ---- global memory
template <class T>
T load(const T* from) {
  return *from;
}
inline Words load_words(const void* from) {
  using namespace emulated;
  if (reinterpret_cast<uintptr_t>(from) % 16) CMIM_FAIL("16 bytes that are not aligned are read");
  return *static_cast<const Words*>(from);
}
inline uint64 load_8_bytes(const void* from) {
  using namespace emulated;
  if (reinterpret_cast<uintptr_t>(from) % 8) CMIM_FAIL("8 bytes that are not aligned are read");
  uint64 v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
inline void prefetch_bytes(const void* from, int bytes) {
  using namespace emulated;
  if (bytes % 16 || reinterpret_cast<uintptr_t>(from) % 16)
    CMIM_FAIL("bytes that are no multiple of 16 or not aligned are prefetched");
  // AddressSanitizer looks at these reads.
  for (int i = 0; i < bytes; ++i) (void)static_cast<const volatile char*>(from)[i];
}
inline int add_atomically(int* to, int value) {
  return std::atomic_ref<int>(*to).fetch_add(value, std::memory_order_relaxed);
}
inline void add_atomically(int64* to, int64 value) {
  std::atomic_ref<int64>(*to).fetch_add(value, std::memory_order_relaxed);
}
inline void store_words_at(void* to, Words v) {
  using namespace emulated;
  if (reinterpret_cast<uintptr_t>(to) % 16) CMIM_FAIL("16 bytes that are not aligned are written");
  *static_cast<Words*>(to) = v;
}

// ---- numbers
template <class T>
T opaque(T value) {
  return value;
}
inline float float_of_bits(uint32 v) {
  return std::bit_cast<float>(v);
}
inline uint32 bits_of(float v) {
  return std::bit_cast<uint32>(v);
}
inline float square_root(float v) {
  return std::sqrt(v);
}
inline float quotient(float a, float b) {
  return a / b;
}
inline float larger(float a, float b) {
  return std::fmax(a, b);
}
inline float smaller(float a, float b) {
  return std::fmin(a, b);
}
inline uint32 to_halves(float low, float high) {
  return emulated::to_half(low) | uint32(emulated::to_half(high)) << 16;
}
inline uint32 to_bfloats(float low, float high) {
  return emulated::to_bfloat(low) | uint32(emulated::to_bfloat(high)) << 16;
}
template <Half kType>
uint32 to_16_bits(float low, float high) {
  return kType == Half::float16 ? to_halves(low, high) : to_bfloats(low, high);
}
inline float two_to_the(float v) {
  const float power = std::exp2(v);
  return power < 0x1p-126f ? 0 : power;
}
inline float natural_logarithm(float v) {
  return std::log(v);
}
inline float low_half(uint32 v) {
  return emulated::of_half(static_cast<uint16>(v));
}
inline float high_half(uint32 v) {
  return emulated::of_half(static_cast<uint16>(v >> 16));
}
inline uint32 subtract_halves(uint32 a, uint32 b) {
  const auto difference = [](float from, float what) {
    return uint32(emulated::to_half(double(from) - double(what)));
  };
  return difference(low_half(a), low_half(b)) | difference(high_half(a), high_half(b)) << 16;
}
inline uint32 pick_bytes(uint32 low, uint32 high, uint32 selector) {
  const uint64 both = uint64(high) << 32 | low;
  uint32 picked = 0;
  for (int i = 0; i < 4; ++i) picked |= uint32(both >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return picked;
}
inline int dot_of_signed_bytes(uint32 a, uint32 b, int sum) {
  for (int shift = 0; shift < 32; shift += 8) sum += int8(a >> shift) * int8(b >> shift);
  return sum;
}

// ---- mbarriers
inline void barrier_init(Address barrier, int arrivals) {
  using namespace emulated;
  check(self->block->barrier(barrier).init(arrivals), *self->block, barrier);
}
inline void barrier_init_done() {}
inline void barrier_arrive_expect(Address barrier, int bytes) {
  using namespace emulated;
  check_arrival();
  check(self->block->barrier(barrier).arrive(bytes), *self->block, barrier);
}
inline void barrier_arrive(Address barrier) {
  barrier_arrive_expect(barrier, 0);
}
inline void barrier_arrive_of(Address barrier, int rank) {
  using namespace emulated;
  check_rank(rank);
  if (rank == self->block->rank) return barrier_arrive(barrier);
  check_arrival();
  Block& block = self->block->cluster.blocks[rank];
  note_remote(block);
  late([&block, barrier] { check(block.barrier(barrier).arrive(0), block, barrier); });
}
inline void barrier_wait(Address barrier, int parity) {
  using namespace emulated;
  check(self->block->barrier(barrier).wait(parity), *self->block, barrier);
}

// ---- copies to shared memory that end at a barrier
inline void load_box(Address to, const TensorMap* map, int column, int row, Address barrier) {
  emulated::load_box(to, *map, column, row, barrier, 1u << cluster_rank());
}
inline void load_box_of(Address to, const TensorMap* map, int column, int row, Address barrier,
                        int blocks) {
  emulated::load_box(to, *map, column, row, barrier, static_cast<uint32>(blocks));
}
inline void load_bytes(Address to, const void* from, int bytes, Address barrier) {
  using namespace emulated;
  if (bytes % 16 || reinterpret_cast<uintptr_t>(from) % 16)
    CMIM_FAIL("a copy of bytes that are no multiple of 16 or not aligned");
  copy_late(to, bytes, 16, barrier, 1u << cluster_rank(),
            [from, bytes](unsigned char* place) { std::memcpy(place, from, bytes); });
}
inline void send_words(Address to, Words v, Address barrier, int rank) {
  emulated::check_rank(rank);
  emulated::copy_late(to, 16, 16, barrier, 1u << rank,
                      [v](unsigned char* place) { std::memcpy(place, v.w, 16); });
}
inline void send_bytes(Address to, Address from, int bytes, Address barrier, int rank) {
  emulated::send_bytes(to, from, bytes, barrier, rank);
}

// ---- copies of 16 bytes to shared memory that the thread waits for
inline void copy_words(Address to, const void* from, bool exists) {
  emulated::copy_words(to, from, exists);
}
inline void copies_wait() {
  emulated::copies_wait();
}
inline void make_visible_to_products() {
  emulated::self->unfenced = false;
}

// ---- registers of a warpgroup
template <int N>
void give_registers() {
  emulated::change_registers(N, false);
}
template <int N>
void take_registers() {
  emulated::change_registers(N, true);
}

// ---- products of a warpgroup
inline void products_fence() {
  emulated::self->products->fenced = true;
}
inline void products_commit() {
  emulated::Products& products = *emulated::self->products;
  products.groups.push_back(std::move(products.open));
  products.open.clear();
}
template <int Left>
void products_wait() {
  auto& groups = emulated::self->products->groups;
  for (; groups.size() > Left; groups.pop_front()) emulated::complete(groups.front());
  emulated::meet_warp("products_wait");
}
template <int kSums>
void products_are_in(float (&sums)[kSums]) {
  emulated::take_back(sums, kSums);
}
template <Half kType, Major kA, Major kB, int kSums>
void product(float (&sums)[kSums], uint64 a, uint64 b, bool add) {
  static_assert(kSums % 8 == 0 && kSums <= 64);
  emulated::start({kType, kA, kB, sums, kSums, a, b, add});
}

}  // namespace clustermim::hopper
