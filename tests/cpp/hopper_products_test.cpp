// The emulated products of every type, major and size, against sums in float64.
#include <cmath>
#include <random>
#include <utility>
#include <vector>

#include "check.h"
#include "hopper/instructions.h"
#include "hopper/operands.h"

using namespace clustermim::hopper;
using emulated::launch;
using emulated::Shape;

namespace {

constexpr int kDepth = 64;

// [rows, kDepth]
std::vector<uint16> some_values(Half type, int rows, unsigned seed) {
  std::minstd_rand random(seed);
  std::normal_distribution<float> normal;
  std::vector<uint16> values(rows * kDepth);
  for (uint16& value : values) {
    const float v = normal(random);
    value = type == Half::float16 ? emulated::to_half(v) : emulated::to_bfloat(v);
  }
  return values;
}

// The threads of a warpgroup write an operand.
void write(Address to, const std::vector<uint16>& values, Major major, int next_64) {
  for (int at = thread_index(); at < static_cast<int>(values.size()) / 8; at += 128) {
    Words words;
    uint16 parts[8];
    if (major == Major::k) {
      const int row = at / 8, chunk = at % 8;
      for (int i = 0; i < 8; ++i) parts[i] = values[row * kDepth + 8 * chunk + i];
      std::memcpy(words.w, parts, 16);
      store_words(to + swizzled_128(row, chunk), words);
    } else {
      const int k = at % kDepth, chunk = at / kDepth;
      for (int i = 0; i < 8; ++i) parts[i] = values[(8 * chunk + i) * kDepth + k];
      std::memcpy(words.w, parts, 16);
      store_words(to + chunk / 8 * next_64 + swizzled_128(k, chunk % 8), words);
    }
  }
}

template <Half kType, Major kA, Major kB, int kColumns>
void product_is_right(int next_64) {
  const std::vector<uint16> a = some_values(kType, 64, 1), b = some_values(kType, kColumns, 2);
  std::vector<float> out(64 * kColumns);
  launch(Shape{1, 128, 1, 8192 + 8192 + uint32(next_64)}, [&](Address memory) {
    const Address columns = memory + 8192;
    write(memory, a, kA, 0);
    write(columns, b, kB, next_64);
    make_visible_to_products();
    block_sync();
    const Operand row =
        kA == Major::k ? Operand(memory, Swizzle::bytes_128) : Operand::mn(memory, 0);
    const Operand column =
        kB == Major::k ? Operand(columns, Swizzle::bytes_128) : Operand::mn(columns, next_64);
    float sums[kColumns / 2];
    products_fence();
    for (int k = 0; k < kDepth / 16; ++k)
      product<kType, kA, kB>(sums, row.descriptor(k * (kA == Major::k ? 32 : 2048)),
                             column.descriptor(k * (kB == Major::k ? 32 : 2048)), k > 0);
    products_commit();
    products_wait<0>();
    products_are_in(sums);
    const int t = thread_index();
    for (int i = 0; i < kColumns / 2; ++i)
      out[(16 * (t / 32) + t % 32 / 4 + 8 * (i / 2 % 2)) * kColumns + 8 * (i / 4) + 2 * (t % 4) +
          i % 2] = sums[i];
  });
  for (int row = 0; row < 64; ++row)
    for (int column = 0; column < kColumns; ++column) {
      double sum = 0, size = 0;
      for (int k = 0; k < kDepth; ++k) {
        const double product = double(emulated::of_16_bits(kType, a[row * kDepth + k])) *
                               emulated::of_16_bits(kType, b[column * kDepth + k]);
        sum += product, size += std::fabs(product);
      }
      // Products are exact, sums of float32.
      CHECK(std::fabs(out[row * kColumns + column] - sum) <= 1.01 * kDepth * 0x1p-24 * size);
    }
}

template <Half kType, Major kA, Major kB>
void products_are_right() {
  [&]<int... kSizes>(std::integer_sequence<int, kSizes...>) {
    (product_is_right<kType, kA, kB, 16 * (kSizes + 1)>(8192), ...);
  }(std::make_integer_sequence<int, 8>());
  product_is_right<kType, kA, kB, 128>(8192 + 1024);
  product_is_right<kType, kA, kB, 80>(3 * 8192);
}

template <Half kType>
void products_of_type_are_right() {
  products_are_right<kType, Major::k, Major::k>();
  products_are_right<kType, Major::k, Major::mn>();
  products_are_right<kType, Major::mn, Major::k>();
  products_are_right<kType, Major::mn, Major::mn>();
}

}  // namespace

int main() {
  products_of_type_are_right<Half::float16>();
  products_of_type_are_right<Half::bfloat16>();
  return 0;
}
