// Parts of a sum, made by several workers and added to the total in a fixed order.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace clustermim {

// A part that is ready before its turn is kept, and its worker goes on with another: waking a
// thread takes as long as a hundred rows. Whoever brings the part whose turn it is adds those that
// were waiting for it, too.
template <typename Part>
class PartsInOrder {
 public:
  // At most two parts for each worker exist.
  PartsInOrder(int64_t turns, int workers) : ready_(turns), left_(2 * workers) {}

  // A part for this turn, new ones by make(); null when some turn was given up. Waits only when
  // workers are too far ahead: the last part is kept for the turn that all others wait for.
  template <typename Make>
  std::unique_ptr<Part> take(int64_t turn, Make make) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] {
      const auto usable = static_cast<int64_t>(free_.size()) + left_;
      return given_up_ || usable > 1 || (usable == 1 && turn == next_);
    });
    if (given_up_) return nullptr;
    if (free_.empty()) {
      --left_;
      lock.unlock();
      return make();
    }
    std::unique_ptr<Part> part = std::move(free_.back());
    free_.pop_back();
    return part;
  }

  // add(part) is never called by two threads at once, and leaves the part as a new one.
  template <typename Add>
  void finish(int64_t turn, std::unique_ptr<Part> finished, Add add) {
    std::unique_lock lock(mutex_);
    ready_[turn] = std::move(finished);
    if (adding_) return;  // that thread looks again
    adding_ = true;
    while (next_ < static_cast<int64_t>(ready_.size()) && ready_[next_]) {
      std::unique_ptr<Part> part = std::move(ready_[next_]);
      lock.unlock();
      add(*part);
      lock.lock();
      free_.push_back(std::move(part));
      ++next_;
      changed_.notify_all();
    }
    adding_ = false;
  }

  // The turn of some part will not come.
  void give_up() {
    const std::lock_guard lock(mutex_);
    given_up_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::unique_ptr<Part>> ready_;  // [turns]
  std::vector<std::unique_ptr<Part>> free_;
  int64_t left_;  // parts that may still be made
  int64_t next_ = 0;
  bool adding_ = false, given_up_ = false;
};

}  // namespace clustermim
