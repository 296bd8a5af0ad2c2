// wgmma: nothing is read or computed before it is waited for, and the sums are garbage until then.
#pragma once

#include <bit>
#include <cstring>
#include <map>
#include <vector>

#include "hopper/halves.h"
#include "hopper/machine.h"

namespace clustermim::hopper::emulated {

struct Product {
  float* sums;
  uint64 a, b;
  bool add;
};

struct Products {
  // The sums that the tensor cores have, by where the thread has them.
  struct Registers {
    std::array<float, 64> values;
    int under_way = 0;
  };
  std::map<float*, Registers> held;
  std::vector<Product> open;
  std::deque<std::vector<Product>> groups;
  bool fenced = false;  // since the thread last had sums to itself

  bool under_way() const { return !open.empty() || !groups.empty(); }
};

constexpr uint32 kGarbage = 0x7fbadbad;  // a NaN

// 16 values of a row of an operand, by its descriptor.
inline std::array<float, 16> operand_row(const Block& block, uint64 descriptor, int row) {
  const uint64 swizzle = descriptor >> 62;
  if (swizzle != 1 && swizzle != 2) CMIM_FAIL("an operand of a swizzle that is not emulated");
  const uint32 width = swizzle == 1 ? 128 : 64, mask = swizzle == 1 ? 7 : 3;
  const auto field = [&](int bit) { return static_cast<uint32>(descriptor >> bit & 0x3fff) << 4; };
  if (field(0) % width + 32 > width) CMIM_FAIL("an operand's 16 values are not in one row");
  if (descriptor >> 49 & 7) CMIM_FAIL("an operand whose pattern begins elsewhere is not emulated");
  const Address at = field(0) + row / 8 * field(32) + row % 8 * width;
  std::array<float, 16> values;
  for (int chunk = 0; chunk < 2; ++chunk) {
    const Address plain = at + 16 * chunk, swizzled = plain ^ ((plain >> 7 & mask) << 4);
    uint16 halves[8];
    std::memcpy(halves, block.at(swizzled, 16, 16), 16);
    for (int i = 0; i < 8; ++i) values[8 * chunk + i] = of_half(halves[i]);
  }
  return values;
}

// This thread's 64 sums: of two rows, 32 columns each.
inline void multiply(const Product& p, std::array<float, 64>& sums) {
  const Block& block = *self->block;
  const int t = self->index % 128, row = 16 * (t / 32) + t % 32 / 4, column = 2 * (t % 4);
  const std::array<float, 16> a[2] = {operand_row(block, p.a, row),
                                      operand_row(block, p.a, row + 8)};
  for (int group = 0; group < 16; ++group)
    for (int side = 0; side < 2; ++side) {
      const std::array<float, 16> b = operand_row(block, p.b, 8 * group + column + side);
      for (int half = 0; half < 2; ++half) {
        float& sum = sums[4 * group + 2 * half + side];
        if (!p.add) sum = 0;
        for (int k = 0; k < 16; ++k) sum += a[half][k] * b[k];
      }
    }
}

inline void start(float (&sums)[64], uint64 a, uint64 b, bool add) {
  Products& all = *self->products;
  auto [entry, is_new] = all.held.try_emplace(sums);
  if (is_new) {
    if (!all.fenced) CMIM_FAIL("products of sums that the thread had, without a products_fence");
    std::memcpy(entry->second.values.data(), sums, sizeof sums);
    std::fill_n(sums, 64, std::bit_cast<float>(kGarbage));
  }
  ++entry->second.under_way;
  all.open.push_back({sums, a, b, add});
}

inline void complete(const std::vector<Product>& group) {
  for (const Product& p : group) {
    Products::Registers& held = self->products->held.at(p.sums);
    multiply(p, held.values);
    --held.under_way;
  }
}

inline void take_back(float (&sums)[64]) {
  Products& all = *self->products;
  const auto entry = all.held.find(sums);
  if (entry == all.held.end()) return;
  if (entry->second.under_way) CMIM_FAIL("sums are used while their products are under way");
  for (float value : sums)
    if (std::bit_cast<uint32>(value) != kGarbage)
      CMIM_FAIL("sums were written while their products were under way");
  std::memcpy(sums, entry->second.values.data(), sizeof sums);
  all.held.erase(entry);
  all.fenced = false;
}

}  // namespace clustermim::hopper::emulated
