#include "gpu/tensor_map.h"

#include "gpu/driver.h"

namespace clustermim::gpu {
namespace {

Status bad(const char* argument, const char* expected, long long got) {
  return Status::error(StatusCode::invalid_argument, "encode_tensor_map: %s must be %s, got %lld",
                       argument, expected, got);
}

struct Element {
  int code;
  int bytes;
};

Element element(DType dtype) {
  switch (dtype) {
    case DType::f32: return {kCuFloat32, 4};
    case DType::f64: return {kCuFloat64, 8};
    case DType::f16: return {kCuFloat16, 2};
    case DType::bf16: return {kCuBfloat16, 2};
    case DType::u8: return {kCuUint8, 1};
  }
  return {-1, 0};
}

int swizzle_code(int bytes) {
  switch (bytes) {
    case 0: return kCuSwizzleNone;
    case 32: return kCuSwizzle32;
    case 64: return kCuSwizzle64;
    case 128: return kCuSwizzle128;
  }
  return -1;
}

Status check(const TensorMapArgs& a) {
  const int bytes = element(a.dtype).bytes;
  const auto address = reinterpret_cast<uintptr_t>(a.address);
  if (bytes == 0) return bad("dtype", "a code of core/dtype.h", static_cast<int>(a.dtype));
  if (a.rank < 1 || a.rank > kMaxTensorMapRank) return bad("sizes", "1 to 5 numbers", a.rank);
  if (address == 0) return bad("address", "that of data", 0);
  if (address % 16 != 0) return bad("address", "a multiple of 16", static_cast<long long>(address));
  if (swizzle_code(a.swizzle) < 0) return bad("swizzle", "0, 32, 64 or 128", a.swizzle);
  for (int i = 0; i < a.rank; ++i) {
    if (a.sizes[i] < 1 || a.sizes[i] > int64_t{1} << 32) {
      return bad("sizes", "from 1 to 2^32", a.sizes[i]);
    }
    if (a.box[i] < 1 || a.box[i] > 256) return bad("box", "from 1 to 256", a.box[i]);
  }
  for (int i = 0; i + 1 < a.rank; ++i) {
    const int64_t most = (int64_t{1} << 40) / bytes;
    if (a.strides[i] < 1 || a.strides[i] >= most || a.strides[i] * bytes % 16 != 0) {
      return bad("strides", "multiples of 16 bytes below 2^40 bytes", a.strides[i]);
    }
  }
  if (a.box[0] * bytes % 16 != 0) return bad("box[0]", "a multiple of 16 bytes", a.box[0]);
  if (a.swizzle != 0 && a.box[0] * bytes > a.swizzle) {
    return bad("box[0]", "no wider than the swizzle", a.box[0]);
  }
  return Status();
}

}  // namespace

Status encode_tensor_map(const TensorMapArgs& args, TensorMap* map) {
  CMIM_RETURN_IF_ERROR(check(args));
  CMIM_RETURN_IF_ERROR(check_driver());
  const Element type = element(args.dtype);
  uint64_t sizes[kMaxTensorMapRank] = {}, strides[kMaxTensorMapRank] = {};
  uint32_t box[kMaxTensorMapRank] = {}, steps[kMaxTensorMapRank] = {};
  for (int i = 0; i < args.rank; ++i) {
    sizes[i] = static_cast<uint64_t>(args.sizes[i]);
    box[i] = static_cast<uint32_t>(args.box[i]);
    steps[i] = 1;
    if (i + 1 < args.rank) strides[i] = static_cast<uint64_t>(args.strides[i] * type.bytes);
  }
  constexpr int kNoInterleave = 0, kFillWithZeros = 0;
  CMIM_DRIVER_CALL(cuTensorMapEncodeTiled, map, type.code, static_cast<uint32_t>(args.rank),
                   const_cast<void*>(args.address), sizes, strides, box, steps, kNoInterleave,
                   swizzle_code(args.swizzle), kCuPromotion128, kFillWithZeros);
  return Status();
}

}  // namespace clustermim::gpu
