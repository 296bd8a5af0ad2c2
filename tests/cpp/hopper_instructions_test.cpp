// The emulation of Hopper's instructions: right numbers from a right program, a sentence from each
// of many wrong ones.
#include "hopper/instructions.h"

#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "hopper/operands.h"
#include "hopper_misuse.h"

using namespace clustermim::hopper;
using emulated::launch;
using emulated::Shape;

namespace {

std::vector<uint16> some_halves(int count, unsigned seed) {
  std::minstd_rand random(seed);
  std::normal_distribution<double> values;
  std::vector<uint16> halves;
  for (int i = 0; i < count; ++i) halves.push_back(emulated::to_half(values(random)));
  return halves;
}

// Products of rows [2 blocks][64, 64] and columns [2 tiles][100, 64] of zeros beyond, which a
// cluster shares; biases per column. A warpgroup fetches and stores, one multiplies.
struct Problem {
  static constexpr int kDepth = 64, kColumns = 100, kTiles = 2;
  std::vector<uint16> rows = some_halves(2 * 64 * kDepth, 1);
  std::vector<uint16> columns = some_halves(kTiles * kColumns * kDepth, 2);
  std::vector<float> biases = std::vector<float>(kTiles * 128);
  std::vector<float> out = std::vector<float>(2 * 64 * kTiles * 128);
  int counter = 0;
};

void multiply(Problem& p, const TensorMap& map, Address memory) {
  const Address rows = memory, stages = rows + 64 * 128, bias = stages + 2 * 128 * 64;
  const Address full = bias + 512, empty = full + 16, rows_full = full + 32;
  const int rank = cluster_rank(), warp = uniform(thread_index() / 32), lane = thread_index() % 32;
  if (thread_index() == 0) {
    for (int s = 0; s < 2; ++s) barrier_init(full + 8 * s, 1), barrier_init(empty + 8 * s, 8);
    barrier_init(rows_full, 3);
    barrier_init_done();
  }
  block_sync();
  cluster_sync();
  if (warp < 4) {
    give_registers<40>();
    if (warp == 0 && lane == 0) {
      for (int step = 0; step < 2 * Problem::kTiles; ++step) {
        const int stage = step % 2, row = step / 2 * Problem::kColumns;
        barrier_wait(empty + 8 * stage, (step / 2 & 1) ^ 1);
        barrier_arrive_expect(full + 8 * stage, 128 * 64 + (stage == 0 ? 512 : 0));
        if (stage == 0) load_bytes(bias, &p.biases[step / 2 * 128], 512, full);
        load_box_of(stages + stage * 128 * 64 + rank * 64 * 64, &map, stage * 32, row + rank * 64,
                    full + 8 * stage, 3);
      }
    } else if (warp > 0) {
      for (int at = thread_index() - 32; at < 64 * 8; at += 96) {
        const int row = at / 8, chunk = at % 8;
        store_words(rows + swizzled_128(row, chunk),
                    load_words(&p.rows[(rank * 64 + row) * 64 + 8 * chunk]));
      }
      make_visible_to_products();
      warp_sync();
      if (lane == 0) barrier_arrive(rows_full);
    }
  } else {
    take_registers<256>();
    const Operand row(rows, Swizzle::bytes_128), column(stages, Swizzle::bytes_64);
    barrier_wait(rows_full, 0);
    for (int tile = 0; tile < Problem::kTiles; ++tile) {
      float sums[64], addends[32];
      for (int stage = 0; stage < 2; ++stage) {
        barrier_wait(full + 8 * stage, tile % 2);
        if (stage == 0) {
          for (int g = 0; g < 16; ++g)
            load_float2(bias + 32 * g + 8 * (lane % 4), addends[2 * g], addends[2 * g + 1]);
        }
        products_fence();
        for (int k = 0; k < 2; ++k)
          product<Half::float16, Major::k, Major::k>(sums, row.descriptor(64 * stage + 32 * k),
                                                     column.descriptor(128 * 64 * stage + 32 * k),
                                                     stage > 0 || k > 0);
        products_commit();
      }
      products_wait<0>();
      products_are_in(sums);
      warp_sync();
      for (int stage = 0; stage < 2; ++stage)
        if (lane < 2) barrier_arrive_of(empty + 8 * stage, lane);
      const int first = 64 * rank + thread_index() % 128 / 32 * 16 + lane / 4;
      for (int i = 0; i < 64; ++i)
        p.out[((first + i / 2 % 2 * 8) * Problem::kTiles + tile) * 128 + i / 4 * 8 + lane % 4 * 2 +
              i % 2] = sums[i] + addends[i / 4 * 2 + i % 2];
    }
  }
  add_atomically(&p.counter, count_bits(lanes_where(lane % 2 == 0)));
  cluster_sync();
}

void products_are_right() {
  Problem p;
  for (size_t i = 0; i < p.biases.size(); ++i) p.biases[i] = static_cast<float>(i);
  const TensorMap map = emulated::box_map(p.columns.data(), Problem::kTiles * Problem::kColumns,
                                          Problem::kDepth, Problem::kDepth, 64, 32);
  launch(Shape{2, 256, 2, 64 * 128 + 2 * 128 * 64 + 512 + 40},
         [&](Address memory) { multiply(p, map, memory); });
  CHECK(p.counter == 2 * 256 * 16);
  for (int row = 0; row < 128; ++row)
    for (int tile = 0; tile < Problem::kTiles; ++tile)
      for (int c = 0; c < 128; ++c) {
        const double bias = p.biases[tile * 128 + c];
        double sum = bias, size = std::fabs(bias);
        for (int k = 0; k < Problem::kDepth; ++k) {
          const int column = tile * Problem::kColumns + c;  // beyond the last: zeros
          const size_t at = size_t(column) * 64 + k;
          const double product = at >= p.columns.size()
                                     ? 0.0
                                     : double(emulated::of_half(p.rows[row * 64 + k])) *
                                           emulated::of_half(p.columns[at]);
          sum += product;
          size += std::fabs(product);
        }
        const double error = std::fabs(p.out[(row * Problem::kTiles + tile) * 128 + c] - sum);
        CHECK(error <= 1.01 * (Problem::kDepth + 1) * 0x1p-24 * size);  // float32 sums
      }
}

void numbers() {
  for (uint32 bits = 0; bits < 0x7c00; ++bits) {
    const double here = emulated::of_half(static_cast<uint16>(bits));
    const double next = bits == 0x7bff ? 65536.0 : emulated::of_half(static_cast<uint16>(bits + 1));
    const auto rounded = [](double v) { return emulated::to_half(v); };
    const double between = (here + next) / 2;
    CHECK(rounded(here) == bits && rounded(-here) == (bits | 0x8000));
    CHECK(rounded(between) == bits + bits % 2);  // ties to even, of which infinity is one
    CHECK(rounded(std::nextafter(between, 0.0)) == bits);
    CHECK(rounded(std::nextafter(between, 1e9)) == bits + 1);
  }
  CHECK(to_halves(1.0f, -2.0f) == 0xc0003c00u);
  CHECK(low_half(0xc0003c00u) == 1.0f && high_half(0xc0003c00u) == -2.0f);
  CHECK(std::isnan(low_half(to_halves(NAN, 0))));
  CHECK(subtract_halves(0x64ff6400u, 0x64806480u) == to_halves(-128, 127));
  CHECK(pick_bytes(0x33221100u, 0x77665544u, 0x7150u) == 0x77115500u);
  CHECK(dot_of_signed_bytes(0x80ff7f01u, 0x80ff7f02u, 5) == 16384 + 1 + 16129 + 2 + 5);
  CHECK(larger(NAN, 1.0f) == 1.0f && smaller(2.0f, NAN) == 2.0f);
}

// Bytes may come before they are announced; a phase ends with the last of both.
void phases() {
  emulated::Barrier barrier;
  CHECK(!barrier.init(2));
  CHECK(!barrier.wait(1));
  CHECK(!barrier.complete(16) && !barrier.arrive(0) && !barrier.arrive(16));
  CHECK(!barrier.wait(0));
  CHECK(!barrier.arrive(32) && !barrier.arrive(0) && !barrier.complete(16));
  CHECK(!barrier.wait(0));  // still the second phase
  CHECK(barrier.arrive(0));
  CHECK(!barrier.complete(16) && !barrier.wait(1));
}

void lanes() {
  launch(Shape{2, 128}, [](Address) {
    const int lane = thread_index() % 32;
    CHECK(from_lane_xor(lane, 5) == (lane ^ 5));
    CHECK(from_lane_xor(float(lane), 16) == float(lane ^ 16));
    CHECK(from_lane(lane, 7) == 7);
    CHECK(lanes_where(lane == 3 || lane == 31) == 0x80000008u);
    CHECK(num_blocks() == 2 && cluster_rank() == 0);
  });
}

const std::vector<Misuse>& misuses() {
  static const std::vector<uint16> zeros(128 * 32);
  static const TensorMap map = emulated::box_map(zeros.data(), 128, 32, 32, 128, 32);
  static const auto start = [](float (&sums)[64]) {
    const uint64 zero = Operand(1024, Swizzle::bytes_64).descriptor(0);
    product<Half::float16, Major::k, Major::k>(sums, zero, zero, false);
  };
  const Shape plain = {1, 128, 1, 128 * 64 + 16}, pair = {2, 128, 2, 128 * 64 + 16};
  const Address barrier = 1024 + 128 * 64;
  static const std::vector<Misuse> all = {
      {"arrivals", "more arrivals at a barrier", plain, one([=](Address) {
         barrier_init(barrier, 1);
         barrier_arrive_expect(barrier, 16);
         barrier_arrive(barrier);
       })},
      {"no_init", "not initialised", plain, one([=](Address) { barrier_arrive(barrier); })},
      {"no_end", "no end of waiting at a barrier", plain, one([=](Address) {
         barrier_init(barrier, 1);
         barrier_wait(barrier, 0);
       }),
       true},
      {"outside", "bytes at 9232 of shared memory, of which the block has", plain,
       one([=](Address) { store_float(barrier + 16, 1); })},
      {"alignment", "no multiple of 16", plain, one([](Address m) { store_words(m + 8, {}); })},
      {"divergent", "not all lanes of the warp came to from_lane", plain,
       one([](Address) { from_lane(0, 0); }), true},
      {"disagree", "do not agree", plain, [](Address) { uniform(thread_index()); }},
      {"block_sync", "not all threads of the block", plain, one([](Address) { block_sync(); }),
       true},
      {"unfenced", "without make_visible_to_products", plain,
       [=](Address memory) {
         if (thread_index() == 0) barrier_init(barrier, 1);
         if (thread_index() == 5) store_words(memory, {});
         if (thread_index() < 32) warp_sync();
         if (thread_index() == 0) barrier_arrive(barrier);
       }},
      {"too_many_registers",
       "not so many were given",
       {1, 256},
       [](Address) {
         if (thread_index() < 128)
           give_registers<248>();
         else
           take_registers<256>();
       },
       true},
      {"wrong_way", "registers takes 24", plain, [](Address) { take_registers<24>(); }},
      {"early_copy", "may not have begun", pair, one([=](Address memory) {
         barrier_init(barrier, 1);
         load_box_of(memory, &map, 0, 0, barrier, 3);
       })},
      {"no_last_sync", "ends without a cluster_sync", pair,
       [=](Address) {
         if (thread_index() == 0) barrier_init(barrier, 1);
         cluster_sync();
         if (thread_index() == 0) barrier_arrive_of(barrier, cluster_rank() ^ 1);
       }},
      {"copy_at_end", "ends with copies to or from its memory under way", plain,
       [=](Address memory) {
         block_sync();
         if (thread_index() != 0) return;
         barrier_init(barrier, 1);
         for (int i = 0; i < 100; ++i) load_box(memory, &map, 0, 0, barrier);
       }},
      {"used_early", "are used while their products are under way", plain, one([](Address) {
         float sums[64];
         products_fence();
         start(sums);
         products_commit();
         products_are_in(sums);
       })},
      {"written_early", "were written while their products were under way", plain,
       [](Address) {
         float sums[64];
         products_fence();
         start(sums);
         products_commit();
         sums[7] = 0;
         products_wait<0>();
         products_are_in(sums);
       }},
      {"no_fence", "without a products_fence", plain, one([](Address) {
         float sums[64];
         start(sums);
       })},
      {"never_waited", "ends with products under way", plain, one([](Address) {
         float sums[64];
         products_fence();
         start(sums);
       })},
      {"no_tma_alignment", "no multiple of 512", plain, one([=](Address memory) {
         barrier_init(barrier, 1);
         load_box(memory + 128, &map, 0, 0, barrier);
       })},
      {"odd_bytes", "no multiple of 16", plain,
       one([=](Address memory) { load_bytes(memory, zeros.data(), 8, barrier); })},
  };
  return all;
}

}  // namespace

int main(int count, char** arguments) {
  if (misused(misuses(), count, arguments)) return 0;
  numbers();
  phases();
  lanes();
  products_are_right();
  misuses_are_named(misuses());
  return 0;
}
