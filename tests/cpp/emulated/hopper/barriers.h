// mbarriers: arrivals release, waiting acquires, and nothing else is ordered.
#pragma once

#include <bit>

#include "hopper/waiting.h"

namespace clustermim::hopper::emulated {

class Barrier {
 public:
  // nullptr, or what is wrong with the call; so do the others.
  const char* init(int arrivals) {
    if (arrivals < 1 || arrivals >= 1 << 15) return "a barrier for too few or too many arrivals";
    arrivals_ = arrivals;  // not atomic: who uses it unsynchronised has a race
    state_.store(State{0, static_cast<int16_t>(arrivals), 0}, std::memory_order_relaxed);
    return nullptr;
  }

  // `bytes` more are to come in this phase.
  const char* arrive(int bytes) { return change(1, bytes); }
  // They have come.
  const char* complete(int bytes) { return change(0, -bytes); }

  // Until the phase of that parity has ended.
  const char* wait(int parity) {
    if (parity != 0 && parity != 1) return "the parity of a phase is 0 or 1";
    if (arrivals_ == 0) return kUnknown;
    const auto end = deadline();
    while (true) {
      const uint32_t seen = changes_.load(kReading);
      if (state_.load(std::memory_order_acquire).phase != parity) return nullptr;
      if (Clock::now() > end) return "no end of waiting at a barrier";
      sleep_on(changes_, seen);
    }
  }

  std::string describe() const {
    const State now = state_.load();
    return "phase of parity " + std::to_string(now.phase) + ", " + std::to_string(now.pending) +
           " of " + std::to_string(arrivals_) + " arrivals and " + std::to_string(now.bytes) +
           " bytes are to come";
  }

 private:
  struct State {
    int32_t bytes;
    int16_t pending, phase;
  };
  static_assert(std::atomic<State>::is_always_lock_free);
  static constexpr const char* kUnknown = "a barrier that was not initialised";

  const char* change(int arrivals, int bytes) {
    if (arrivals_ == 0) return kUnknown;
    State now = state_.load(std::memory_order_relaxed), next;
    do {
      next = now;
      next.pending = static_cast<int16_t>(now.pending - arrivals);
      next.bytes += bytes;
      if (next.pending < 0) return "more arrivals at a barrier than its phase takes";
      if (std::abs(next.bytes) >= 1 << 20) return "more bytes at a barrier than it can count";
      if (next.pending == 0 && next.bytes == 0)
        next.pending = static_cast<int16_t>(arrivals_), next.phase ^= 1;
    } while (!state_.compare_exchange_weak(now, next, std::memory_order_release,
                                           std::memory_order_relaxed));
    if (next.phase != now.phase) {
      changes_.fetch_add(1, kChanging);
      wake_sleepers(changes_);
    }
    return nullptr;
  }

  std::atomic<State> state_{};
  std::atomic<uint32_t> changes_{0};
  int arrivals_ = 0;
};

}  // namespace clustermim::hopper::emulated
