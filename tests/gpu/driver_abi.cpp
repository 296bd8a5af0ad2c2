// Compiles where csrc/gpu/driver_abi.h says of the driver what NVIDIA's cuda.h says.
#include <cuda.h>

#include <cstddef>
#include <string_view>
#include <type_traits>

#include "gpu/driver_abi.h"

namespace {

using namespace clustermim::gpu;

// The same number of arguments, each passed the same way: both pointers, or both of the same size
// (enums there, int here).
template <typename Ours, typename Theirs>
constexpr bool kPassedAlike =
    std::is_pointer_v<Ours> == std::is_pointer_v<Theirs> && sizeof(Ours) == sizeof(Theirs);
template <typename Ours, typename Theirs>
struct Alike : std::false_type {};
template <typename R, typename... A, typename S, typename... B>
requires(sizeof...(A) == sizeof...(B)) struct Alike<R (*)(A...), S(B...)>
    : std::bool_constant<kPassedAlike<R, S> && (kPassedAlike<A, B> && ...)> {};

// cuda.h renames some functions (cuCtxCreate to cuCtxCreate_v2): these must keep their names.
#define TEXT(x) #x
#define EXPANDED(x) TEXT(x)
#define CHECK_FUNCTION(name, arguments)                                                        \
  static_assert(Alike<CuResult(*) arguments, decltype(::name)>::value, "arguments of " #name); \
  static_assert(std::string_view(EXPANDED(name)) == TEXT(name));
CMIM_DRIVER_FUNCTIONS(CHECK_FUNCTION)

static_assert(kCuSuccess == CUDA_SUCCESS && kCuNotInitialized == CUDA_ERROR_NOT_INITIALIZED);
static_assert(kCuMaxDynamicSharedBytes == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
static_assert(kCuClusterDimension == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION);
static_assert(kCuUint8 == CU_TENSOR_MAP_DATA_TYPE_UINT8);
static_assert(kCuFloat16 == CU_TENSOR_MAP_DATA_TYPE_FLOAT16);
static_assert(kCuFloat32 == CU_TENSOR_MAP_DATA_TYPE_FLOAT32);
static_assert(kCuFloat64 == CU_TENSOR_MAP_DATA_TYPE_FLOAT64);
static_assert(kCuBfloat16 == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16);
static_assert(kCuSwizzleNone == CU_TENSOR_MAP_SWIZZLE_NONE);
static_assert(kCuSwizzle32 == CU_TENSOR_MAP_SWIZZLE_32B);
static_assert(kCuSwizzle64 == CU_TENSOR_MAP_SWIZZLE_64B);
static_assert(kCuSwizzle128 == CU_TENSOR_MAP_SWIZZLE_128B);
static_assert(kCuPromotion128 == CU_TENSOR_MAP_L2_PROMOTION_L2_128B);
static_assert(CU_TENSOR_MAP_INTERLEAVE_NONE == 0 && CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE == 0);

static_assert(sizeof(TensorMap) == sizeof(CUtensorMap));
static_assert(alignof(TensorMap) >= alignof(CUtensorMap));
static_assert(sizeof(CuLaunchAttribute) == sizeof(CUlaunchAttribute));
static_assert(offsetof(CuLaunchAttribute, value) == offsetof(CUlaunchAttribute, value));
static_assert(sizeof(CuLaunchConfig) == sizeof(CUlaunchConfig));
static_assert(offsetof(CuLaunchConfig, grid) == offsetof(CUlaunchConfig, gridDimX));
static_assert(offsetof(CuLaunchConfig, block) == offsetof(CUlaunchConfig, blockDimX));
static_assert(offsetof(CuLaunchConfig, shared_bytes) == offsetof(CUlaunchConfig, sharedMemBytes));
static_assert(offsetof(CuLaunchConfig, stream) == offsetof(CUlaunchConfig, hStream));
static_assert(offsetof(CuLaunchConfig, attributes) == offsetof(CUlaunchConfig, attrs));
static_assert(offsetof(CuLaunchConfig, num_attributes) == offsetof(CUlaunchConfig, numAttrs));

}  // namespace
