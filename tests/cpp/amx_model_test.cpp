// docs/certificate.md assumes an order of operations for tdpbf16ps; this compares the instruction
// with it, bit by bit, on the machine at hand.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>

#include "assign/tiles_amx.h"
#include "check.h"
#include "core/cpu_features.h"

using namespace clustermim;

namespace {

float bfloat16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

float flushed(float v) {
  return std::fpclassify(v) == FP_SUBNORMAL ? std::copysign(0.0f, v) : v;
}

alignas(64) uint16_t a[16][32], b[16][32];
alignas(64) float before[16][16], after[16][16];

float model(int row, int column) {
  float even = 0.0f, odd = 0.0f;
  for (int k = 0; k < 16; ++k) {
    even = flushed(
        std::fma(flushed(bfloat16(a[row][2 * k])), flushed(bfloat16(b[k][2 * column])), even));
    odd = flushed(std::fma(flushed(bfloat16(a[row][2 * k + 1])),
                           flushed(bfloat16(b[k][2 * column + 1])), odd));
  }
  return flushed(flushed(before[row][column]) + flushed(even + odd));
}

}  // namespace

int main() {
  if (!isa_usable(Isa::amx)) {
    std::printf("amx_model_test: this machine has no AMX, nothing to compare\n");
    return 0;
  }
  std::mt19937 random(1);
  // Spreads of the exponents: near one, within 2^8, within 2^30, near the smallest normal number.
  const int lowest[] = {125, 119, 97, 60}, spread[] = {3, 8, 30, 6};
  for (int round = 0; round < 200; ++round) {
    auto value = [&] {
      const uint32_t r = random();
      const uint32_t exponent = lowest[round % 4] + (r >> 20) % spread[round % 4];
      return static_cast<uint16_t>((r & 0x8000) | (exponent << 7) | (r & 127));
    };
    for (auto& row : a) {
      for (auto& v : row) v = value();
    }
    for (auto& row : b) {
      for (auto& v : row) v = value();
    }
    for (auto& row : before) {
      for (auto& v : row) v = bfloat16(value()) * (1.0f + (random() & 0xffff) * 0x1p-23f);
    }
    enter_tiles();
    CMIM_TILE_LOAD(0, before, 64);
    CMIM_TILE_LOAD(1, a, 64);
    CMIM_TILE_LOAD(2, b, 64);
    CMIM_TILE_DOT_BF16(0, 1, 2);
    CMIM_TILE_STORE(0, after, 64);
    leave_tiles();
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 16; ++j) CHECK(after[i][j] == model(i, j));
    }
  }
  return 0;
}
