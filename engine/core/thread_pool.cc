#include "engine/core/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>

#include "engine/core/check.h"

namespace binarymos {
namespace {

// Parts of the state, from the lowest bit: workers in the job, two flags, and
// the job's number.
constexpr uint64_t kActive = 0xffff;
constexpr uint64_t kOpen = 1 << 16;
constexpr uint64_t kStop = 1 << 17;
constexpr int kJobShift = 32;

uint64_t JobOf(uint64_t state) { return state >> kJobShift; }

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Polls until `condition` holds or `limit` has passed; whether it held.
template <typename Condition>
bool SpinUntil(std::chrono::microseconds limit, Condition condition) {
  using Clock = std::chrono::steady_clock;
  constexpr int kPolls = 64;  // about a microsecond
  if (limit.count() == 0) return condition();
  const Clock::time_point end = Clock::now() + limit;
  do {
    for (int i = 0; i < kPolls; ++i) {
      if (condition()) return true;
      Pause();
    }
    std::this_thread::yield();
  } while (Clock::now() < end);
  return condition();
}

// The CPUs that the calling thread may use; empty if the system does not say.
std::vector<int> AllowedCpus() {
  cpu_set_t set;
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

}  // namespace

ThreadPool::ThreadPool(const ThreadPoolOptions& options) : spin_(options.spin) {
  BINARYMOS_CHECK(options.num_threads >= 1 && options.num_threads <= 1024)
      << options.num_threads;
  const std::vector<int> cpus =
      options.pin ? AllowedCpus() : std::vector<int>();
  workers_.reserve(options.num_threads - 1);
  for (size_t i = 0; i + 1 < static_cast<size_t>(options.num_threads); ++i) {
    const int cpu = cpus.empty() ? -1 : cpus[cpus.size() - 1 - i % cpus.size()];
    workers_.emplace_back([this, cpu] { WorkerMain(cpu); });
  }
}

ThreadPool::~ThreadPool() {
  state_.fetch_or(kStop);
  { MutexLock lock(mutex_); }  // nobody is between looking and sleeping
  job_or_stop_.NotifyAll();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::ParallelFor(int64_t count, int64_t grain,
                             absl::FunctionRef<void(int64_t, int64_t)> body) {
  if (count <= 0) return;
  BINARYMOS_CHECK_GE(grain, 1);
  job_ = {count, grain, &body};
  next_.store(0, std::memory_order_relaxed);
  if (workers_.empty() || count <= grain) return Run();
  const uint64_t job = JobOf(state_.load(std::memory_order_relaxed)) + 1;
  state_.store(job << kJobShift | kOpen);
  if (num_sleeping_.load() > 0) {
    { MutexLock lock(mutex_); }
    job_or_stop_.NotifyAll();
  }
  Run();
  AwaitWorkers();
}

void ThreadPool::AwaitWorkers() {
  const auto all_left = [this] { return (state_.load() & kActive) == 0; };
  state_.fetch_and(~kOpen);
  if (SpinUntil(spin_, all_left)) return;
  MutexLock lock(mutex_);
  caller_sleeps_.store(true);
  while (!all_left()) done_.Wait(mutex_);
  caller_sleeps_.store(false);
}

void ThreadPool::Run() {
  const Job job = job_;
  for (;;) {
    const int64_t begin = next_.fetch_add(job.grain, std::memory_order_relaxed);
    if (begin >= job.count) return;
    (*job.body)(begin, std::min(begin + job.grain, job.count));
  }
}

uint64_t ThreadPool::AwaitJob(uint64_t seen) {
  uint64_t state = 0;
  const auto has_news = [&] {
    state = state_.load();
    return JobOf(state) != seen || (state & kStop) != 0;
  };
  if (SpinUntil(spin_, has_news)) return state;
  MutexLock lock(mutex_);
  num_sleeping_.fetch_add(1);
  while (!has_news()) job_or_stop_.Wait(mutex_);
  num_sleeping_.fetch_sub(1);
  return state;
}

void ThreadPool::Join(uint64_t state) {
  const uint64_t job = JobOf(state);
  do {
    if ((state & kOpen) == 0 || JobOf(state) != job) return;
  } while (!state_.compare_exchange_weak(state, state + 1));
  Run();
  const bool last = (state_.fetch_sub(1) & kActive) == 1;
  if (last && caller_sleeps_.load()) {
    { MutexLock lock(mutex_); }
    done_.NotifyOne();
  }
}

void ThreadPool::WorkerMain(int cpu) {
  if (cpu >= 0) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    // Refused, e.g. by a changed cpuset: then the thread is merely not pinned.
    pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
  }
  uint64_t seen = 0;
  for (;;) {
    const uint64_t state = AwaitJob(seen);
    if ((state & kStop) != 0) return;
    seen = JobOf(state);
    Join(state);
  }
}

}  // namespace binarymos
