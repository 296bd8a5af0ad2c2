// Threads for the kernels: those of an OpenMP runtime that the process uses anyway, or our own
// small pool, which sanitizers understand, forked children get anew, and calls from several Python
// threads share.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/status.h"

namespace clustermim {

// A non-owning reference to a callable body(task, worker).
class TaskBody {
 public:
  // Implicit on purpose; not for TaskBody itself, or a copy would refer to its source.
  template <typename F>
  requires(!std::is_same_v<F, TaskBody>) TaskBody(F& f)
      : object_(const_cast<void*>(static_cast<const void*>(&f))),
        call_([](void* object, int64_t task, int worker) {
          (*static_cast<F*>(object))(task, worker);
        }) {}
  void operator()(int64_t task, int worker) const { call_(object_, task, worker); }

 private:
  void* object_;
  void (*call_)(void*, int64_t, int);
};

// Runs body(task, worker) for every task in [0, tasks), each once, on at most `threads` threads,
// the caller among them; worker is in [0, threads) and no two running bodies share it. Which worker
// runs which task is not fixed: a result must not depend on it. The body may throw std::bad_alloc
// only. Runs inside DefaultFloatEnvironment. Bodies must not call parallel_for.
Status parallel_for(int threads, int64_t tasks, TaskBody body);

// region(body, data, threads, 0) runs body(data) on each thread of a team of at most that many: the
// entry point of OpenMP runtimes, GOMP_parallel. Null: our own pool.
//
// After each parallel region torch's OpenMP threads keep their cores busy for milliseconds, waiting
// for the next. Threads of our own would fight them for the cores; these start at once instead. A
// forked child of a process that has such threads hangs in a region, and goes back to our pool.
using ParallelRegion = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);
void set_parallel_region(ParallelRegion region);

}  // namespace clustermim
