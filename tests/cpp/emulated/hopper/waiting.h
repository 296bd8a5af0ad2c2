// Waiting with a deadline, and how a wrong program ends: with a sentence, not hanging.
//
// Threads sleep on a word of memory (futex) and not on condition variables, whose mutex would order
// accesses that the emulated instruction does not order, and hide races from ThreadSanitizer.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace clustermim::hopper::emulated {

// On the GPU this would hang, or get numbers wrong without a word.
[[noreturn]] __attribute__((format(printf, 2, 3))) inline void fail_at(const std::string& where,
                                                                       const char* format, ...) {
  // One line for each sentence: of a hang, who waits for whom.
  static std::mutex lock;
  static std::vector<const char*> said;
  {
    std::lock_guard hold(lock);
    if (std::find(said.begin(), said.end(), format) == said.end()) {
      said.push_back(format);
      char text[400];
      va_list arguments;
      va_start(arguments, format);
      std::vsnprintf(text, sizeof text, format, arguments);
      va_end(arguments);
      std::fprintf(stderr, "emulated Hopper, %s: %s\n", where.c_str(), text);
    }
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  std::abort();
}

using Clock = std::chrono::steady_clock;

// CLUSTERMIM_EMULATED_SECONDS: how long a thread may wait; enough for a busy machine under TSan.
inline Clock::time_point deadline() {
  static const char* given = std::getenv("CLUSTERMIM_EMULATED_SECONDS");
  static const int seconds = given ? std::atoi(given) : 120;
  return Clock::now() + std::chrono::seconds(seconds);
}

// Returns once `word` may have changed from `seen`, or a second later.
inline void sleep_on(std::atomic<uint32_t>& word, uint32_t seen) {
  const timespec second = {1, 0};
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, seen, &second, nullptr, 0);
}
inline void wake_sleepers(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

// What orders no memory accesses of its users; x86 orders the emulation's own all the same.
#if defined(__x86_64__)
constexpr auto kChanging = std::memory_order_relaxed, kReading = kChanging;
#else
constexpr auto kChanging = std::memory_order_acq_rel, kReading = std::memory_order_acquire;
#endif

// Where threads meet: none goes on before all `size` have come.
class Gate {
 public:
  explicit Gate(int size) : size_(static_cast<uint32_t>(size)) {}

  // Whether all came in time. kOrders: what each did before, the others see after.
  template <bool kOrders>
  bool meet() {
    constexpr auto changing = kOrders ? std::memory_order_acq_rel : kChanging;
    constexpr auto reading = kOrders ? std::memory_order_acquire : kReading;
    const uint32_t ticket = arrived_.fetch_add(1, changing);
    const uint32_t all = (ticket / size_ + 1) * size_;
    if (ticket + 1 == all) {
      wake_sleepers(arrived_);
      return true;
    }
    const auto end = deadline();
    for (uint32_t seen; (seen = arrived_.load(reading)) < all; sleep_on(arrived_, seen))
      if (Clock::now() > end) return false;
    return true;
  }

 private:
  const uint32_t size_;
  std::atomic<uint32_t> arrived_{0};
};

}  // namespace clustermim::hopper::emulated
