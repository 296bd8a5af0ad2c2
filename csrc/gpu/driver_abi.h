// What we use of the CUDA driver's binary interface, declared here so that no toolkit is needed to
// build. tests/gpu/test_driver_abi.py holds it against cuda.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace clustermim::gpu {

using CuResult = int;  // an enum there; 0 is success
using CuDevice = int;
using CuContext = struct CuContextOpaque*;
using CuModule = struct CuModuleOpaque*;
using CuFunction = struct CuFunctionOpaque*;
using CuStream = struct CuStreamOpaque*;

constexpr CuResult kCuSuccess = 0;
constexpr CuResult kCuNotInitialized = 3;
constexpr int kCuMaxDynamicSharedBytes = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
constexpr int kCuClusterDimension = 4;       // CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION

struct CuLaunchAttribute {
  int id;
  char pad[4];
  union {
    char bytes[64];
    unsigned cluster[3];
  } value;
};

struct CuLaunchConfig {
  unsigned grid[3], block[3];
  unsigned shared_bytes;
  CuStream stream;
  CuLaunchAttribute* attributes;
  unsigned num_attributes;
};

// Values of CUtensorMapDataType, CUtensorMapSwizzle, CUtensorMapL2promotion.
constexpr int kCuUint8 = 0, kCuFloat16 = 6, kCuFloat32 = 7, kCuFloat64 = 8, kCuBfloat16 = 9;
constexpr int kCuSwizzleNone = 0, kCuSwizzle32 = 1, kCuSwizzle64 = 2, kCuSwizzle128 = 3;
constexpr int kCuPromotion128 = 2;

struct alignas(128) TensorMap {  // 64 until CUDA 12
  uint64_t opaque[16];
};

// The functions, as X(name, arguments).
#define CMIM_DRIVER_FUNCTIONS(X)                                                          \
  X(cuDriverGetVersion, (int* version))                                                   \
  X(cuInit, (unsigned flags))                                                             \
  X(cuDeviceGet, (CuDevice * device, int ordinal))                                        \
  X(cuCtxGetCurrent, (CuContext * context))                                               \
  X(cuCtxSetCurrent, (CuContext context))                                                 \
  X(cuDevicePrimaryCtxRetain, (CuContext * context, CuDevice device))                     \
  X(cuModuleLoadData, (CuModule * module, const void* image))                             \
  X(cuModuleGetFunction, (CuFunction * function, CuModule module, const char* name))      \
  X(cuFuncSetAttribute, (CuFunction function, int attribute, int value))                  \
  X(cuLaunchKernelEx,                                                                     \
    (const CuLaunchConfig* config, CuFunction function, void** arguments, void** extra))  \
  X(cuGetErrorName, (CuResult error, const char** text))                                  \
  X(cuGetErrorString, (CuResult error, const char** text))                                \
  X(cuTensorMapEncodeTiled,                                                               \
    (TensorMap * map, int dtype, uint32_t rank, void* address, const uint64_t* sizes,     \
     const uint64_t* strides, const uint32_t* box, const uint32_t* steps, int interleave, \
     int swizzle, int promotion, int fill))

}  // namespace clustermim::gpu
