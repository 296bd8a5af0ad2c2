// The instructions of Hopper (sm_90a) that the kernels are written over, as inline PTX.
//
// tests/cpp/emulated/hopper/instructions.h has the same names for the CPU: each effect is held back
// until it is waited for, so that a body that waits too little reads garbage there too. Bodies
// include nothing else, and so the source that runs on the GPU is the source under the sanitizers.
#pragma once

#include "hopper/products.h"
#include "hopper/types.h"

namespace clustermim::hopper {

// What cuTensorMapEncodeTiled makes; passed as a __grid_constant__.
struct alignas(64) TensorMap {
  uint64 opaque[16];
};

// ---- where a thread is
CMIM_DEVICE int thread_index() {
  return threadIdx.x;
}
// The same, asked for again: not kept in a register since it was last.
CMIM_DEVICE int thread_index_again() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}
CMIM_DEVICE int block_index() {
  return blockIdx.x;
}
CMIM_DEVICE int num_blocks() {
  return gridDim.x;
}
// ptxas has to see that a warp's threads agree, or it cannot keep registers of products in flight.
template <class T>
CMIM_DEVICE T uniform(T value) {
  return __shfl_sync(~0u, value, 0);
}

// ---- shared memory
CMIM_DEVICE Address shared_address(const void* p) {
  return static_cast<Address>(__cvta_generic_to_shared(p));
}
CMIM_DEVICE void store_words(Address to, Words v) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.w[0]), "r"(v.w[1]),
               "r"(v.w[2]), "r"(v.w[3])
               : "memory");
}
CMIM_DEVICE Words load_words_of(Address from) {
  Words v;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
               : "r"(from)
               : "memory");
  return v;
}
CMIM_DEVICE void store_word(Address to, uint32 v) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(v) : "memory");
}
// Those of one number are not for products.
CMIM_DEVICE void store_float(Address to, float v) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(v) : "memory");
}
CMIM_DEVICE float load_float(Address from) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(from) : "memory");
  return v;
}
CMIM_DEVICE void store_int(Address to, int v) {
  asm volatile("st.shared.s32 [%0], %1;" ::"r"(to), "r"(v) : "memory");
}
CMIM_DEVICE int load_int(Address from) {
  int v;
  asm volatile("ld.shared.s32 %0, [%1];" : "=r"(v) : "r"(from) : "memory");
  return v;
}
CMIM_DEVICE void store_double(Address to, double v) {
  asm volatile("st.shared.f64 [%0], %1;" ::"r"(to), "d"(v) : "memory");
}
CMIM_DEVICE double load_double(Address from) {
  double v;
  asm volatile("ld.shared.f64 %0, [%1];" : "=d"(v) : "r"(from) : "memory");
  return v;
}
CMIM_DEVICE void add_to_shared(Address to, int v) {  // atomically
  asm volatile("red.shared.add.s32 [%0], %1;" ::"r"(to), "r"(v) : "memory");
}
CMIM_DEVICE void load_float2(Address from, float& a, float& b) {
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(a), "=f"(b) : "r"(from) : "memory");
}

// ---- threads of a block, of a warp, of a cluster of blocks
CMIM_DEVICE void block_sync() {
  __syncthreads();
}
// Of kThreads of the block's threads: those that call it, whole warps.
template <int kThreads>
CMIM_DEVICE void some_sync() {
  asm volatile("barrier.sync 1, %0;" ::"n"(kThreads) : "memory");
}
CMIM_DEVICE void warp_sync() {
  __syncwarp();
}
template <class T>
CMIM_DEVICE T from_lane_xor(T v, int with) {
  return __shfl_xor_sync(~0u, v, with);
}
template <class T>
CMIM_DEVICE T from_lane(T v, int lane) {
  return __shfl_sync(~0u, v, lane);
}
CMIM_DEVICE uint32 lanes_where(bool predicate) {
  return __ballot_sync(~0u, predicate);
}
CMIM_DEVICE int count_bits(uint32 v) {
  return __popc(v);
}
CMIM_DEVICE int cluster_rank() {
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
CMIM_DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}

// ---- global memory
template <class T>
CMIM_DEVICE T load(const T* from) {
  return __ldg(from);
}
CMIM_DEVICE Words load_words(const void* from) {  // 16 bytes, aligned
  const uint4 v = __ldg(static_cast<const uint4*>(from));
  return {{v.x, v.y, v.z, v.w}};
}
CMIM_DEVICE uint64 load_8_bytes(const void* from) {  // aligned
  return __ldg(static_cast<const uint64*>(from));
}
// To L2. 16 bytes are the unit of both.
CMIM_DEVICE void prefetch_bytes(const void* from, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes));
}
CMIM_DEVICE int add_atomically(int* to, int value) {
  return atomicAdd(to, value);
}
CMIM_DEVICE void add_atomically(int64* to, int64 value) {
  atomicAdd(reinterpret_cast<uint64*>(to), static_cast<uint64>(value));
}
CMIM_DEVICE void store_words_at(void* to, Words v) {  // aligned
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.w[0]), "r"(v.w[1]),
               "r"(v.w[2]), "r"(v.w[3])
               : "memory");
}

// ---- numbers
// The value, of which the compiler is to assume nothing.
template <class T>
CMIM_DEVICE T opaque(T value) {
  asm volatile("" : "+r"(value));
  return value;
}
CMIM_DEVICE float float_of_bits(uint32 v) {
  return __uint_as_float(v);
}
CMIM_DEVICE uint32 bits_of(float v) {
  return __float_as_uint(v);
}
CMIM_DEVICE float square_root(float v) {
  return __fsqrt_rn(v);
}
// To 2 units in the last place, without the long way that exact division takes at times.
CMIM_DEVICE float quotient(float a, float b) {
  float v;
  asm("div.full.f32 %0, %1, %2;" : "=f"(v) : "f"(a), "f"(b));
  return v;
}
CMIM_DEVICE float larger(float a, float b) {
  return fmaxf(a, b);
}  // the number, of one and a NaN
CMIM_DEVICE float smaller(float a, float b) {
  return fminf(a, b);
}
// Within 2 units in the last place; no subnormal numbers, but 0.
CMIM_DEVICE float two_to_the(float v) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(v));
  return power;
}
CMIM_DEVICE float natural_logarithm(float v) {
  return logf(v);
}
// Two float16, rounded to nearest; `low` in the low half.
CMIM_DEVICE uint32 to_halves(float low, float high) {
  uint32 v;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
  return v;
}
// The same of bfloat16.
CMIM_DEVICE uint32 to_bfloats(float low, float high) {
  uint32 v;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
  return v;
}
template <Half kType>
CMIM_DEVICE uint32 to_16_bits(float low, float high) {
  return kType == Half::float16 ? to_halves(low, high) : to_bfloats(low, high);
}
CMIM_DEVICE float low_half(uint32 v) {
  float out;
  asm("{.reg .b16 l, h;\nmov.b32 {l, h}, %1;\ncvt.f32.f16 %0, l;}" : "=f"(out) : "r"(v));
  return out;
}
CMIM_DEVICE float high_half(uint32 v) {
  float out;
  asm("{.reg .b16 l, h;\nmov.b32 {l, h}, %1;\ncvt.f32.f16 %0, h;}" : "=f"(out) : "r"(v));
  return out;
}
CMIM_DEVICE uint32 subtract_halves(uint32 a, uint32 b) {
  uint32 v;
  asm("sub.f16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
  return v;
}
// Byte i of the result is byte `selector >> 4 i & 7` of the eight of (low, high).
CMIM_DEVICE uint32 pick_bytes(uint32 low, uint32 high, uint32 selector) {
  return __byte_perm(low, high, selector);
}
CMIM_DEVICE int dot_of_signed_bytes(uint32 a, uint32 b, int sum) {
  return __dp4a(static_cast<int>(a), static_cast<int>(b), sum);
}

// What comes from the other block comes as bytes that a barrier of this one counts, so that a
// block's own order is enough: with the cluster's, each arrival would wait for all memory.
// ---- mbarriers: 8 bytes of shared memory each. A phase ends when its arrivals and all announced
// bytes have come; waiting for parity p returns once the phase of that parity has ended.
CMIM_DEVICE void barrier_init(Address barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
CMIM_DEVICE void barrier_init_done() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
CMIM_DEVICE void barrier_arrive(Address barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
CMIM_DEVICE void barrier_arrive_of(Address barrier, int rank) {  // of a block of the cluster
  asm volatile(
      "{.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}
CMIM_DEVICE void barrier_arrive_expect(Address barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
CMIM_DEVICE void barrier_wait(Address barrier, int parity) {
  asm volatile(
      "{.reg .pred done;\nAGAIN:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra AGAIN;\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// ---- copies to shared memory that end at a barrier
// A box of a 2-d map from (column, row) on, to the same place of each block in `blocks` (a bit
// each), and its bytes to the same barrier of each.
CMIM_DEVICE void load_box(Address to, const TensorMap* map, int column, int row, Address barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}
CMIM_DEVICE void load_box_of(Address to, const TensorMap* map, int column, int row, Address barrier,
                             int blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(static_cast<uint16>(blocks))
      : "memory");
}
// `bytes`: a multiple of 16, as are both addresses.
CMIM_DEVICE void load_bytes(Address to, const void* from, int bytes, Address barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}
// 16 bytes to the same place of the block `rank` of the cluster, and to the same barrier there.
CMIM_DEVICE void send_words(Address to, Words v, Address barrier, int rank) {
  asm volatile(
      "{.reg .b32 remote, other;\nmapa.shared::cluster.u32 remote, %0, %6;\n"
      "mapa.shared::cluster.u32 other, %1, %6;\n"
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32"
      " [remote], {%2, %3, %4, %5}, [other];}" ::"r"(to),
      "r"(barrier), "r"(v.w[0]), "r"(v.w[1]), "r"(v.w[2]), "r"(v.w[3]), "r"(rank)
      : "memory");
}
// The same of `bytes` of this block's shared memory, a multiple of 16, as are both addresses.
// Stored words must be visible to products, and stay until the barrier's phase ends there.
CMIM_DEVICE void send_bytes(Address to, Address from, int bytes, Address barrier, int rank) {
  asm volatile(
      "{.reg .b32 remote, other;\nmapa.shared::cluster.u32 remote, %0, %4;\n"
      "mapa.shared::cluster.u32 other, %1, %4;\n"
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes"
      " [remote], [%2], %3, [other];}" ::"r"(to),
      "r"(barrier), "r"(from), "r"(bytes), "r"(rank)
      : "memory");
}

// ---- copies of 16 bytes to shared memory (both addresses aligned) that the thread waits for
// Zeros where it does not exist: `from` is not read then.
CMIM_DEVICE void copy_words(Address to, const void* from, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(exists ? 16 : 0)
               : "memory");
}
CMIM_DEVICE void copies_wait() {  // all of the thread's
  asm volatile("cp.async.wait_all;" ::: "memory");
}
// Between a thread's own stores to shared memory and the tensor cores' reads of them.
CMIM_DEVICE void make_visible_to_products() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- registers of a warpgroup
template <int N>
CMIM_DEVICE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
CMIM_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

}  // namespace clustermim::hopper
