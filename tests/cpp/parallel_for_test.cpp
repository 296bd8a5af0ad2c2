#include "core/parallel_for.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <new>
#include <thread>
#include <vector>

#include "check.h"

using clustermim::parallel_for;

namespace {

void every_task_runs_once(int threads, int64_t tasks) {
  std::vector<int> runs(tasks, 0);
  std::vector<std::atomic<int>> busy(threads);
  auto body = [&](int64_t task, int worker) {
    CHECK(worker >= 0 && worker < threads);
    CHECK(busy[worker].exchange(1) == 0);  // no two running bodies share a worker
    ++runs[task];
    busy[worker].store(0);
  };
  CHECK(parallel_for(threads, tasks, body).ok());
  for (int r : runs) CHECK(r == 1);
}

void callers_share_the_pool() {
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([] {
      for (int i = 0; i < 200; ++i) every_task_runs_once(3, 17);
    });
  }
  for (std::thread& t : callers) t.join();
}

void out_of_memory_is_a_status() {
  auto body = [](int64_t task, int) {
    if (task == 5) throw std::bad_alloc();
  };
  CHECK(parallel_for(2, 10, body).code == clustermim::StatusCode::out_of_memory);
}

// TSan does not follow threads into forked children.
#if !defined(__SANITIZE_THREAD__)
void forked_child_gets_its_own_pool() {
  every_task_runs_once(2, 100);  // the parent's pool exists
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    alarm(20);  // a hang is a failure
    every_task_runs_once(2, 100);
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}
#endif

// An OpenMP runtime's entry point, as far as parallel_for sees it.
std::atomic<int> regions{0};
void a_team(void (*body)(void*), void* data, unsigned threads, unsigned) {
  ++regions;
  std::vector<std::thread> others;
  for (unsigned t = 1; t < threads; ++t) others.emplace_back(body, data);
  body(data);
  for (std::thread& t : others) t.join();
}

void a_team_of_others_is_used() {
  clustermim::set_parallel_region(a_team);
  every_task_runs_once(3, 100);
  every_task_runs_once(5, 2);  // more threads than tasks
  CHECK(regions == 2);
  every_task_runs_once(3, 1);  // nothing to share
  every_task_runs_once(1, 100);
  CHECK(regions == 2);
  out_of_memory_is_a_status();
  callers_share_the_pool();
#if !defined(__SANITIZE_THREAD__)
  regions = 0;
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    every_task_runs_once(2, 100);
    _exit(regions == 0 ? 0 : 1);  // its team would have no threads
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
#endif
  clustermim::set_parallel_region(nullptr);
}

}  // namespace

int main() {
  for (int threads : {1, 2, 5}) {
    for (int64_t tasks : {0, 1, 2, 1000}) every_task_runs_once(threads, tasks);
  }
  callers_share_the_pool();
  out_of_memory_is_a_status();
  a_team_of_others_is_used();
#if !defined(__SANITIZE_THREAD__)
  forked_child_gets_its_own_pool();
#endif
  return 0;
}
