// Where the values of a product's operands lie in shared memory: swizzles and descriptors
// (PTX ISA, "asynchronous warpgroup matrix", shared memory layout). The same for GPU and CPU.
#pragma once

#include "hopper/instructions.h"

namespace clustermim::hopper {

// Rows of 64 or 32 float16, in groups of 8 rows; 16-byte chunks of a row are exchanged so that 8
// rows of one column of chunks lie in different banks.
enum class Swizzle : uint64 { bytes_128 = 1, bytes_64 = 2 };

CMIM_DEVICE constexpr int row_bytes(Swizzle s) {
  return s == Swizzle::bytes_128 ? 128 : 64;
}

// Byte of 16-byte chunk `chunk` of row `row`, in a tile that begins at a multiple of 1024.
CMIM_DEVICE constexpr Address swizzled_128(int row, int chunk) {
  return row * 128 + ((chunk ^ (row % 8)) * 16);
}

// The descriptor of an operand of 16 values of each row of the result; `at`: the tile, plus the
// bytes of the values before. Two halves, so that another place in shared memory is one addition
// away.
struct Operand {
  uint32 low, high;

  // Major::k: rows of the tile are rows of the operand.
  CMIM_DEVICE Operand(Address at, Swizzle s) : Operand(at, 16, 8 * row_bytes(s), s) {}
  // Major::mn: rows of the tile, of 128 bytes, are values that are multiplied with each other's and
  // summed; so `at` is a multiple of 1024, and the next 16 values are 2048 bytes further on. The
  // next 64 rows of the result are `next_64` bytes further on.
  CMIM_DEVICE static Operand mn(Address at, int next_64) {
    return Operand(at, next_64, 8 * 128, Swizzle::bytes_128);
  }
  // `bytes` further on: a multiple of 16.
  CMIM_DEVICE uint64 descriptor(int bytes) const {
    return static_cast<uint64>(high) << 32 | (low + static_cast<uint32>(bytes) / 16);
  }

 private:
  CMIM_DEVICE Operand(Address at, int leading, int stride, Swizzle s)
      : low((at & 0x3ffff) >> 4 | static_cast<uint32>(leading) >> 4 << 16),
        high(static_cast<uint32>(stride) >> 4 | static_cast<uint32>(s) << 30) {}
};

}  // namespace clustermim::hopper
