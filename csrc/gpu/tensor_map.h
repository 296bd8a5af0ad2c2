// Descriptors by which TMA copies boxes of a tensor between global and shared memory.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/status.h"
#include "gpu/driver_abi.h"

namespace clustermim::gpu {

constexpr int kMaxTensorMapRank = 5;

// sizes, strides and box from the fastest dimension on; strides in elements, without that of the
// fastest (1). swizzle: 0, 32, 64 or 128. What is read outside the tensor is 0. What TMA cannot do
// is an error that names the argument: the driver says "invalid argument" to all of it.
struct TensorMapArgs {
  const void* address = nullptr;  // a multiple of 16
  DType dtype = DType::f16;
  int rank = 0;                            // 1 to 5
  int64_t sizes[kMaxTensorMapRank];        // each 1 to 2^32
  int64_t strides[kMaxTensorMapRank - 1];  // each a multiple of 16 bytes, below 2^40 bytes
  int64_t box[kMaxTensorMapRank];          // each 1 to 256; the first a multiple of 16 bytes
  int swizzle = 0;                         // not below the box's first, in bytes
};
Status encode_tensor_map(const TensorMapArgs& args, TensorMap* map);

}  // namespace clustermim::gpu
