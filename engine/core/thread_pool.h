// A fixed team of threads that computes one thing together at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "engine/core/mutex.h"

namespace binarymos {

// The calling thread is a member of the team, so a pool of one starts no
// thread. Workers sleep between calls. ParallelFor may be called from one
// thread at a time. Who computes which index never changes what is computed.
class ThreadPool {
 public:
  // `num_threads` >= 1, the caller included.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(begin, end) for disjoint ranges that cover [0, count), each at
  // most `grain` long, and returns when all are done. Ranges are handed out in
  // ascending order to whichever thread is free.
  void ParallelFor(int64_t count, int64_t grain,
                   absl::FunctionRef<void(int64_t begin, int64_t end)> body);

 private:
  struct Job {
    int64_t count = 0;
    int64_t grain = 1;
    const absl::FunctionRef<void(int64_t, int64_t)>* body = nullptr;
  };

  void WorkerMain();
  void Run(const Job& job);

  std::atomic<int64_t> next_{0};  // first index not handed out

  Mutex mutex_;
  CondVar work_or_stop_;
  CondVar done_;
  Job job_ ABSL_GUARDED_BY(mutex_);
  uint64_t generation_ ABSL_GUARDED_BY(mutex_) = 0;
  int num_active_ ABSL_GUARDED_BY(mutex_) = 0;  // workers not done with job_
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;

  std::vector<std::thread> workers_;  // constant after construction
};

}  // namespace binarymos
