// out (64, 64) = a (64, depth) b (64, depth)^T of float16, by TMA, an mbarrier and wgmma: enough
// that a compiler has to know sm_90a. For the tests of the route, not for use.
#include "tiny/sizes.h"

struct alignas(64) TensorMap {
  unsigned long long opaque[16];
};

__device__ unsigned long long operand(unsigned at) {
  return (unsigned long long)((at & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

__device__ void load(unsigned to, const TensorMap* map, int column, unsigned barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(map), "r"(column), "r"(0), "r"(barrier)
      : "memory");
}

extern "C" __global__ void __launch_bounds__(128, 1)
    tiny(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float* out,
         int depth) {
  extern __shared__ __align__(1024) unsigned char shared[];
  static_assert(kTile == TILE);
  const unsigned tiles = (unsigned)__cvta_generic_to_shared(shared), barrier = tiles + 2 * TILE;
  if (threadIdx.x == 0) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  float c[32] = {};
  for (int step = 0; step < depth / 64; ++step) {
    if (threadIdx.x == 0) {
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
                   "r"(2 * TILE)
                   : "memory");
      load(tiles, &a, step * 64, barrier);
      load(tiles + TILE, &b, step * 64, barrier);
    }
    asm volatile(
        "{\n.reg .pred p;\nagain: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
        "@p bra done;\nbra again;\ndone:\n}" ::"r"(barrier),
        "r"(step % 2)
        : "memory");
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      asm volatile(
          "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
          "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
          "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
          "%32, %33, 1, 1, 1, 0, 0;"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]),
            "+f"(c[7]), "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]),
            "+f"(c[14]), "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]),
            "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]), "+f"(c[25]),
            "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31])
          : "l"(operand(tiles + k * 32)), "l"(operand(tiles + TILE + k * 32)));
    }
    asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
    for (int i = 0; i < 32; ++i) asm volatile("" : "+f"(c[i])::"memory");
    __syncthreads();
  }
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    out[(row + i / 2 % 2 * 8) * 64 + i / 4 * 8 + column + i % 2] = c[i];
  }
}
