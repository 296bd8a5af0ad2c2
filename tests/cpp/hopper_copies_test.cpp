// The emulation of what a thread copies and waits for, and of what a block sends to the other one
// of its cluster: right numbers from right programs, a sentence from each wrong one.
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "check.h"
#include "hopper/instructions.h"
#include "hopper/operands.h"
#include "hopper_misuse.h"

using namespace clustermim::hopper;
using emulated::launch;
using emulated::Shape;

namespace {

bool operator==(const Words& a, const Words& b) {
  return std::memcmp(a.w, b.w, sizeof a.w) == 0;
}

void words_are_copied() {
  // Exactly as many as exist: AddressSanitizer sees a read beyond.
  std::vector<Words> from(70), out(128);
  for (uint32 i = 0; i < from.size(); ++i) from[i] = {{i, i + 1, i + 2, i + 3}};
  launch(Shape{1, 128, 1, 128 * 16}, [&](Address memory) {
    const int t = thread_index();
    const bool exists = t < static_cast<int>(from.size());
    store_words(memory + 16 * t, {{7, 7, 7, 7}});
    copy_words(memory + 16 * t, from.data() + t, exists);
    // Neither what was there nor what is to come.
    CHECK(std::isnan(load_float(memory + 16 * t)) && load_int(memory + 16 * t + 12) == -1);
    copies_wait();
    make_visible_to_products();
    block_sync();
    store_words_at(&out[t], load_words_of(memory + 16 * (127 - t)));
  });
  for (size_t t = 0; t < out.size(); ++t)
    CHECK(out[127 - t] == (t < from.size() ? from[t] : Words{}));
}

// Each block of a pair sends words by all threads, then all of them back by one, and counts.
void blocks_exchange() {
  constexpr int kThreads = 128, kBytes = 16 * kThreads, kRounds = 3;
  std::vector<uint32> out(2 * kThreads);
  int64 total = 1;
  launch(Shape{2, kThreads, 2, 3 * kBytes + 32}, [&](Address memory) {
    const Address sent = memory, back = memory + kBytes, own = memory + 2 * kBytes;
    const Address full = memory + 3 * kBytes, done = full + 8, count = full + 16;
    const int t = thread_index(), rank = cluster_rank(), other = rank ^ 1;
    if (t == 0) {
      barrier_init(full, 1);
      barrier_init(done, 1);
      barrier_init_done();
      store_int(count, 0);
    }
    cluster_sync();
    for (int round = 0; round < kRounds; ++round) {
      const uint32 value = 1000 * round + 500 * rank + t;
      if (t == 0) barrier_arrive_expect(full, kBytes);
      send_words(sent + 16 * t, {{value, value + 1, value + 2, value + 3}}, full, other);
      barrier_wait(full, round % 2);
      const Words words = load_words_of(sent + 16 * t);
      for (uint32 i = 0; i < 4; ++i) {
        CHECK(words.w[i] == 1000 * round + 500 * other + t + i);
        store_word(own + 16 * t + 4 * i, words.w[i] + 1);
      }
      make_visible_to_products();
      block_sync();
      if (t == 0) {
        barrier_arrive_expect(done, kBytes);
        send_bytes(back, own, kBytes, done, other);
      }
      barrier_wait(done, round % 2);  // the other one has what it sent last, and read it
      CHECK(load_words_of(back + 16 * t).w[3] == value + 4);
      cluster_sync();
    }
    add_to_shared(count, t);
    block_sync();
    if (t == 0) add_atomically(&total, int64(load_int(count)) << 32);
    out[kThreads * rank + t] = load_words_of(back + 16 * t).w[0];
  });
  CHECK(total == 1 + (int64(kThreads) * (kThreads - 1) << 32));
  for (int rank = 0; rank < 2; ++rank)
    for (int t = 0; t < kThreads; ++t)
      CHECK(out[kThreads * rank + t] == uint32(1000 * (kRounds - 1) + 500 * rank + t + 1));
}

void numbers() {
  launch(Shape{1, 128, 1, 64}, [](Address memory) {
    const int lane = thread_index() % 32;
    CHECK(from_lane_xor(uint32(lane) << 31, 1) == uint32(lane ^ 1) << 31);
    CHECK(from_lane_xor(0.1 * lane, 16) == 0.1 * (lane ^ 16));
    CHECK(from_lane(0.1 * lane, 9) == 0.1 * 9);
    if (thread_index() != 0) return;
    store_double(memory + 8, 0.1);
    CHECK(load_double(memory + 8) == 0.1);
  });
  const int64 large = int64(1) << 40;
  const unsigned char byte = 200;
  const double third = 1 / 3.0;
  CHECK(load(&large) == large && load(&byte) == 200 && load(&third) == third);
  for (uint32 bits = 0; bits < 0x10000; ++bits) {
    const float value = float_of_bits(bits << 16);
    if (std::isnan(value)) continue;
    CHECK(bits_of(value) == bits << 16 && emulated::to_bfloat(value) == bits);
    CHECK(emulated::of_16_bits(Half::bfloat16, static_cast<uint16>(bits)) == value);
    if (std::isinf(value)) continue;
    CHECK(emulated::to_bfloat(float_of_bits(bits << 16 | 0x8000)) == bits + bits % 2);  // a tie
    CHECK(emulated::to_bfloat(float_of_bits(bits << 16 | 0x7fff)) == bits);
    CHECK(emulated::to_bfloat(float_of_bits(bits << 16 | 0x8001)) == bits + 1);
  }
  CHECK(to_16_bits<Half::bfloat16>(1.0f, -2.0f) == 0xc0003f80u);
  CHECK(to_16_bits<Half::float16>(1.0f, -2.0f) == 0xc0003c00u);
  CHECK(std::isnan(float_of_bits(to_bfloats(0, NAN))));
  CHECK(two_to_the(-3.5f) == 0.088388346f && two_to_the(128) == INFINITY);
  CHECK(two_to_the(-126) == 0x1p-126f && two_to_the(-126.5f) == 0);
  CHECK(two_to_the(-INFINITY) == 0 && std::isnan(two_to_the(NAN)));
  CHECK(natural_logarithm(2) == 0.6931472f && natural_logarithm(0) == -INFINITY);
}

// A pair whose threads meet before and after.
std::function<void(Address)> met(const std::function<void(Address)>& body) {
  return [body](Address memory) {
    if (thread_index() == 0) barrier_init(memory, 1);
    cluster_sync();
    if (thread_index() == 0) body(memory);
    cluster_sync();
  };
}

const std::vector<Misuse>& misuses() {
  static const std::vector<Words> zeros(2);
  static const auto copy = [](Address to) { copy_words(to, zeros.data(), true); };
  static const auto inner = [] { return reinterpret_cast<const char*>(zeros.data()) + 8; };
  const Shape plain = {1, 128, 1, 4096}, pair = {2, 128, 2, 4096};
  static const std::vector<Misuse> all = {
      {"copies_at_end", "the thread ends with copy_words under way", plain,
       one([](Address memory) { copy(memory); })},
      {"copies_at_arrival", "an arrival with copy_words under way", plain, one([](Address memory) {
         barrier_init(memory, 1);
         copy(memory + 16);
         barrier_arrive(memory);
       })},
      {"copies_of_warp", "without make_visible_to_products", plain,
       [](Address memory) {
         if (thread_index() == 0) barrier_init(memory, 1);
         if (thread_index() == 5) copy(memory + 16);
         if (thread_index() < 32) warp_sync();
         if (thread_index() == 0) barrier_arrive(memory);
         copies_wait();
       }},
      {"unannounced_copies", "an arrival after store_words without make_visible", plain,
       one([](Address memory) {
         barrier_init(memory, 1);
         copy(memory + 16);
         copies_wait();
         barrier_arrive(memory);
       })},
      {"unannounced_word", "an arrival after store_words without make_visible", plain,
       one([](Address memory) {
         barrier_init(memory, 1);
         store_word(memory + 16, 1);
         barrier_arrive(memory);
       })},
      {"unannounced_at_sync", "block_sync after store_words without make_visible", plain,
       [](Address memory) {
         if (thread_index() == 3) copy(memory), copies_wait();
         block_sync();
       }},
      {"unannounced_at_cluster_sync", "cluster_sync after store_words without make_visible", pair,
       [](Address memory) {
         if (thread_index() == 3) store_word(memory, 1);
         cluster_sync();
       }},
      {"copy_alignment", "no multiple of 16", plain, one([](Address memory) { copy(memory + 8); })},
      {"copy_from", "16 bytes that are not aligned are copied", plain,
       one([](Address memory) { copy_words(memory, inner(), true); })},
      {"write_to", "16 bytes that are not aligned are written", plain,
       one([](Address) { store_words_at(const_cast<char*>(inner()), {}); })},
      {"early_words", "may not have begun", pair, one([](Address memory) {
         barrier_init(memory, 1);
         send_words(memory + 16, {}, memory, cluster_rank() ^ 1);
       })},
      {"early_bytes", "may not have begun", pair, one([](Address memory) {
         barrier_init(memory, 1);
         send_bytes(memory + 16, memory + 32, 16, memory, cluster_rank() ^ 1);
       })},
      {"nobody", "no block 2 in the cluster", pair,
       met([](Address memory) { send_words(memory + 16, {}, memory, 2); })},
      {"words_at_end", "ends with copies to or from its memory under way", pair,
       met([](Address memory) {
         for (int i = 0; i < 2000; ++i) send_words(memory + 16, {}, memory, cluster_rank() ^ 1);
       })},
      {"bytes_at_end", "ends with copies to or from its memory under way", pair,
       met([](Address memory) {
         for (int i = 0; i < 2000; ++i)
           send_bytes(memory + 16, memory + 32, 16, memory, cluster_rank() ^ 1);
       })},
      {"words_no_last_sync", "ends without a cluster_sync", pair,
       [](Address memory) {
         if (thread_index() == 0) barrier_init(memory, 1);
         cluster_sync();
         if (thread_index() != 0) return;
         barrier_arrive_expect(memory, 16);
         send_words(memory + 16, {}, memory, cluster_rank() ^ 1);
         barrier_wait(memory, 0);
       }},
      {"unannounced_bytes", "a copy after store_words without make_visible", pair,
       met([](Address memory) {
         store_word(memory + 32, 1);
         send_bytes(memory + 16, memory + 32, 16, memory, cluster_rank() ^ 1);
       })},
      {"odd_bytes", "bytes that are no multiple of 16", pair, met([](Address memory) {
         send_bytes(memory + 16, memory + 32, 8, memory, cluster_rank() ^ 1);
       })},
      {"send_alignment", "no multiple of 16", pair,
       met([](Address memory) { send_words(memory + 8, {}, memory, cluster_rank() ^ 1); })},
      {"mn_start", "an MN-major operand at 1152, no multiple of 1024", plain,
       [](Address memory) {
         float sums[8];
         const uint64 operand = Operand::mn(memory + 128, 0).descriptor(0);
         products_fence();
         product<Half::float16, Major::k, Major::mn>(
             sums, Operand(memory, Swizzle::bytes_128).descriptor(0), operand, false);
         products_commit();
         products_wait<0>();
       }},
  };
  return all;
}

}  // namespace

int main(int count, char** arguments) {
  if (misused(misuses(), count, arguments)) return 0;
  numbers();
  words_are_copied();
  blocks_exchange();
  misuses_are_named(misuses());
  return 0;
}
