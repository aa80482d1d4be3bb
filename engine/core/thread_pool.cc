#include "engine/core/thread_pool.h"

#include <algorithm>

#include "engine/core/check.h"

namespace binarymos {

ThreadPool::ThreadPool(int num_threads) {
  BINARYMOS_CHECK_GE(num_threads, 1);
  workers_.reserve(num_threads - 1);
  for (int i = 1; i < num_threads; ++i) {
    workers_.emplace_back([this] { WorkerMain(); });
  }
}

ThreadPool::~ThreadPool() {
  {
    MutexLock lock(mutex_);
    stop_ = true;
    work_or_stop_.NotifyAll();
  }
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::ParallelFor(int64_t count, int64_t grain,
                             absl::FunctionRef<void(int64_t, int64_t)> body) {
  if (count <= 0) return;
  BINARYMOS_CHECK_GE(grain, 1);
  const Job job{count, grain, &body};
  next_.store(0, std::memory_order_relaxed);
  if (workers_.empty() || count <= grain) return Run(job);
  {
    MutexLock lock(mutex_);
    job_ = job;
    ++generation_;
    num_active_ = static_cast<int>(workers_.size());
    work_or_stop_.NotifyAll();
  }
  Run(job);
  MutexLock lock(mutex_);
  while (num_active_ > 0) done_.Wait(mutex_);
}

void ThreadPool::Run(const Job& job) {
  for (;;) {
    const int64_t begin = next_.fetch_add(job.grain, std::memory_order_relaxed);
    if (begin >= job.count) return;
    (*job.body)(begin, std::min(begin + job.grain, job.count));
  }
}

void ThreadPool::WorkerMain() {
  uint64_t seen = 0;
  for (;;) {
    Job job;
    {
      MutexLock lock(mutex_);
      while (!stop_ && generation_ == seen) work_or_stop_.Wait(mutex_);
      if (stop_) return;
      seen = generation_;
      job = job_;
    }
    Run(job);
    MutexLock lock(mutex_);
    if (--num_active_ == 0) done_.NotifyOne();
  }
}

}  // namespace binarymos
