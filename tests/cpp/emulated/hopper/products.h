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
  Half type;
  Major major_a, major_b;
  float* sums;
  int count;  // of sums
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

// 16 values of each of kRows rows of an operand, from `row` on, by its descriptor.
template <int kRows>
std::array<std::array<float, 16>, kRows> operand_rows(Half type, Major major, uint64 descriptor,
                                                      int row) {
  const Block& block = *self->block;
  const uint64 swizzle = descriptor >> 62;
  if (swizzle != 1 && swizzle != 2) CMIM_FAIL("an operand of a swizzle that is not emulated");
  if (descriptor >> 49 & 7) CMIM_FAIL("an operand whose pattern begins elsewhere is not emulated");
  const uint32 width = swizzle == 1 ? 128 : 64, mask = swizzle == 1 ? 7 : 3;
  const auto field = [&](int bit) { return static_cast<uint32>(descriptor >> bit & 0x3fff) << 4; };
  const auto swizzled = [mask](Address plain) { return plain ^ ((plain >> 7 & mask) << 4); };
  std::array<std::array<float, 16>, kRows> values;
  if (major == Major::mn) {
    if (swizzle != 1) CMIM_FAIL("an MN-major operand of a swizzle that is not emulated");
    if (field(0) % 1024) CMIM_FAIL("an MN-major operand at %u, no multiple of 1024", field(0));
    const Address at = field(0) + row / 64 * field(16) + row % 64 * 2;
    for (int k = 0; k < 16; ++k) {
      uint16 halves[kRows];
      const Address place = swizzled(at + k / 8 * field(32) + k % 8 * 128);
      std::memcpy(halves, block.at(place, sizeof halves, sizeof halves), sizeof halves);
      for (int r = 0; r < kRows; ++r) values[r][k] = of_16_bits(type, halves[r]);
    }
    return values;
  }
  if (field(0) % width + 32 > width) CMIM_FAIL("an operand's 16 values are not in one row");
  for (int r = 0; r < kRows; ++r) {
    const Address at = field(0) + (row + r) / 8 * field(32) + (row + r) % 8 * width;
    for (int chunk = 0; chunk < 2; ++chunk) {
      uint16 halves[8];
      std::memcpy(halves, block.at(swizzled(at + 16 * chunk), 16, 16), 16);
      for (int i = 0; i < 8; ++i) values[r][8 * chunk + i] = of_16_bits(type, halves[i]);
    }
  }
  return values;
}

// This thread's sums: of two rows.
inline void multiply(const Product& p, std::array<float, 64>& sums) {
  const int t = self->index % 128, row = 16 * (t / 32) + t % 32 / 4, column = 2 * (t % 4);
  const std::array<float, 16> a[2] = {operand_rows<1>(p.type, p.major_a, p.a, row)[0],
                                      operand_rows<1>(p.type, p.major_a, p.a, row + 8)[0]};
  for (int group = 0; group < p.count / 4; ++group) {
    const auto b = operand_rows<2>(p.type, p.major_b, p.b, 8 * group + column);
    for (int side = 0; side < 2; ++side)
      for (int half = 0; half < 2; ++half) {
        float& sum = sums[4 * group + 2 * half + side];
        if (!p.add) sum = 0;
        for (int k = 0; k < 16; ++k) sum += a[half][k] * b[side][k];
      }
  }
}

inline void start(const Product& p) {
  Products& all = *self->products;
  auto [entry, is_new] = all.held.try_emplace(p.sums);
  if (is_new) {
    if (!all.fenced) CMIM_FAIL("products of sums that the thread had, without a products_fence");
    std::copy_n(p.sums, p.count, entry->second.values.data());
    std::fill_n(p.sums, p.count, std::bit_cast<float>(kGarbage));
  }
  ++entry->second.under_way;
  all.open.push_back(p);
}

inline void complete(const std::vector<Product>& group) {
  for (const Product& p : group) {
    Products::Registers& held = self->products->held.at(p.sums);
    multiply(p, held.values);
    --held.under_way;
  }
}

inline void take_back(float* sums, int count) {
  Products& all = *self->products;
  const auto entry = all.held.find(sums);
  if (entry == all.held.end()) return;
  if (entry->second.under_way) CMIM_FAIL("sums are used while their products are under way");
  for (int i = 0; i < count; ++i)
    if (std::bit_cast<uint32>(sums[i]) != kGarbage)
      CMIM_FAIL("sums were written while their products were under way");
  std::copy_n(entry->second.values.data(), count, sums);
  all.held.erase(entry);
  all.fenced = false;
}

}  // namespace clustermim::hopper::emulated
