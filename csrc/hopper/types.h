// Types that the instructions of Hopper take; the same for GPU and CPU.
#pragma once

#ifdef __CUDACC__
#define CMIM_DEVICE __device__ __forceinline__
#else
#define CMIM_DEVICE inline
#endif

namespace clustermim::hopper {

using int8 = signed char;
using uint8 = unsigned char;
using uint16 = unsigned short;
using uint32 = unsigned int;
using int64 = long long;
using uint64 = unsigned long long;

// A byte of this block's shared memory.
using Address = uint32;

struct alignas(16) Words {
  uint32 w[4];
};

enum class Half { float16, bfloat16 };

// What lies side by side in an operand's memory: values that are multiplied with each other's and
// summed (k), or rows or columns of the result (mn).
enum class Major { k, mn };

}  // namespace clustermim::hopper
