#include "core/parallel_for.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#include "core/float_environment.h"

namespace clustermim {
namespace {

struct Job {
  TaskBody body;
  int64_t tasks;
  std::atomic<int64_t> next{0};
  std::atomic<bool> out_of_memory{false};
  int helpers_started = 0;  // guarded by the pool's mutex, as is running
  int running = 0;

  Job(TaskBody b, int64_t n) : body(b), tasks(n) {}

  void work(int worker) {
    const DefaultFloatEnvironment guard;
    for (;;) {
      const int64_t task = next.fetch_add(1, std::memory_order_relaxed);
      if (task >= tasks || out_of_memory.load(std::memory_order_relaxed)) return;
      try {
        body(task, worker);
      } catch (const std::bad_alloc&) {
        out_of_memory.store(true, std::memory_order_relaxed);
      }
    }
  }
};

class ThreadPool {
 public:
  void run(Job& job, int helpers) {
    {
      const std::lock_guard lock(mutex_);
      start_threads(helpers);
      tickets_.insert(tickets_.end(), helpers, &job);
    }
    if (helpers == 1) {
      ticket_added_.notify_one();
    } else {
      ticket_added_.notify_all();
    }
    job.work(0);
    std::unique_lock lock(mutex_);
    std::erase(tickets_, &job);  // helpers that were busy elsewhere never came
    helper_done_.wait(lock, [&] { return job.running == 0; });
  }

 private:
  void start_threads(int wanted) {
    while (num_threads_ < wanted) {
      try {
        std::thread([this] { serve(); }).detach();
      } catch (const std::system_error&) {
        return;  // fewer helpers: the caller does their share
      }
      ++num_threads_;
    }
  }

  void serve() {
    std::unique_lock lock(mutex_);
    for (;;) {
      ticket_added_.wait(lock, [&] { return !tickets_.empty(); });
      Job* job = tickets_.front();
      tickets_.pop_front();
      ++job->running;
      const int worker = ++job->helpers_started;
      lock.unlock();
      job->work(worker);
      lock.lock();
      if (--job->running == 0) helper_done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable ticket_added_, helper_done_;
  std::deque<Job*> tickets_;
  int num_threads_ = 0;
};

std::atomic<ThreadPool*> current_pool{nullptr};

// Lives until the process ends; a forked child starts without one, since it has none of the
// threads.
ThreadPool& pool() {
  ThreadPool* existing = current_pool.load(std::memory_order_acquire);
  if (existing) return *existing;
  static const int registered = pthread_atfork(
      nullptr, nullptr, [] { current_pool.store(nullptr, std::memory_order_release); });
  (void)registered;
  auto* fresh = new ThreadPool;
  if (current_pool.compare_exchange_strong(existing, fresh, std::memory_order_acq_rel)) {
    return *fresh;
  }
  delete fresh;
  return *existing;
}

std::atomic<ParallelRegion> parallel_region{nullptr};

void run_in_region(ParallelRegion region, Job& job, int threads) {
  struct Team {
    Job& job;
    std::atomic<int> members{0};
  } team{job};
  // The whole team even for few tasks: a runtime that is asked for fewer threads ends the others.
  region(
      [](void* data) {
        Team& t = *static_cast<Team*>(data);
        t.job.work(t.members.fetch_add(1, std::memory_order_relaxed));
      },
      &team, static_cast<unsigned>(threads), 0);
}

}  // namespace

void set_parallel_region(ParallelRegion region) {
  static const int registered = pthread_atfork(
      nullptr, nullptr, [] { parallel_region.store(nullptr, std::memory_order_release); });
  (void)registered;
  parallel_region.store(region, std::memory_order_release);
}

Status parallel_for(int threads, int64_t tasks, TaskBody body) {
  if (tasks <= 0) return Status();
  Job job(body, tasks);
  const int helpers = static_cast<int>(std::min<int64_t>(threads, tasks)) - 1;
  if (helpers > 0) {
    const ParallelRegion region = parallel_region.load(std::memory_order_acquire);
    if (region) {
      run_in_region(region, job, threads);
    } else {
      pool().run(job, helpers);
    }
  } else {
    job.work(0);
  }
  if (job.out_of_memory.load()) {
    return Status::error(StatusCode::out_of_memory, "not enough memory for the kernel's workspace");
  }
  return Status();
}

}  // namespace clustermim
