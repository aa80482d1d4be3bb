// A fixed team of threads that computes one thing together at a time.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "engine/core/mutex.h"

namespace binarymos {

struct ThreadPoolOptions {
  int num_threads = 1;  // >= 1, the caller included
  // How long a thread that has run out of work polls for more before it sleeps.
  // It yields to whoever else wants its CPU. 0 where CPUs are shared for long.
  std::chrono::microseconds spin{0};
  // Each worker keeps to a CPU of its own, from the last that the process may
  // use downwards; more workers than CPUs begin again at the last. The caller
  // stays free: the threads that it starts would inherit its place.
  bool pin = false;
};

// The calling thread is a member of the team, so a pool of one starts no
// thread. Idle workers sleep. ParallelFor may be called from one thread at a
// time. Who computes which index never changes what is computed.
class ThreadPool {
 public:
  explicit ThreadPool(int num_threads)
      : ThreadPool(ThreadPoolOptions{.num_threads = num_threads}) {}
  explicit ThreadPool(const ThreadPoolOptions& options);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }
  // Workers that sleep at this moment.
  int num_sleeping() const { return num_sleeping_.load(); }

  // Calls body(begin, end) for disjoint ranges that cover [0, count), each at
  // most `grain` long, and returns when all are done. Ranges are handed out in
  // ascending order to whichever thread is free; a worker that wakes up after
  // the last was handed out is not waited for.
  void ParallelFor(int64_t count, int64_t grain,
                   absl::FunctionRef<void(int64_t begin, int64_t end)> body);

 private:
  struct Job {
    int64_t count = 0;
    int64_t grain = 1;
    const absl::FunctionRef<void(int64_t, int64_t)>* body = nullptr;
  };

  void WorkerMain(int cpu);
  void Run();
  // Returns the state once it is not that of job `seen`, or says stop.
  uint64_t AwaitJob(uint64_t seen);
  // Takes part in the job of `state` if it is still open.
  void Join(uint64_t state);
  void AwaitWorkers();

  const std::chrono::microseconds spin_;

  // The number of the job, whether it is open to workers, whether to stop, and
  // how many workers are in it: see thread_pool.cc.
  alignas(64) std::atomic<uint64_t> state_{0};
  alignas(64) std::atomic<int64_t> next_{0};  // first index not handed out
  // Written by the caller while the job is closed and nobody is in it.
  Job job_;

  // Whoever sleeps counts itself here first and then looks at state_ again;
  // whoever changes state_ then looks here. So nobody sleeps through a change.
  std::atomic<int> num_sleeping_{0};
  std::atomic<bool> caller_sleeps_{false};
  Mutex mutex_;
  CondVar job_or_stop_;
  CondVar done_;

  std::vector<std::thread> workers_;  // constant after construction
};

}  // namespace binarymos
