#include "server/text_executor.h"

#include <utility>

namespace binarymos {
namespace {

class FunctionJob : public TextJob {
 public:
  explicit FunctionJob(std::function<void()> work) : work_(std::move(work)) {}
  void Run() override { work_(); }

 private:
  const std::function<void()> work_;
};

}  // namespace

TextExecutor::TextExecutor(int num_threads) {
  threads_.reserve(num_threads);
  for (int i = 0; i < num_threads; ++i) {
    threads_.emplace_back([this] { ThreadMain(); });
  }
}

TextExecutor::~TextExecutor() {
  {
    MutexLock lock(mutex_);
    stop_ = true;
  }
  work_or_stop_.NotifyAll();
  for (std::thread& thread : threads_) thread.join();
}

void TextExecutor::Schedule(std::shared_ptr<TextJob> job) {
  using State = TextJob::State;
  State state = job->state_.load(std::memory_order_relaxed);
  while (true) {
    const bool running =
        state == State::kRunning || state == State::kRunningAgain;
    const State next = running ? State::kRunningAgain : State::kQueued;
    // Also where the state stays the same: the exchange orders the caller's
    // writes before the run that it counts on.
    if (job->state_.compare_exchange_weak(state, next,
                                          std::memory_order_acq_rel,
                                          std::memory_order_relaxed)) {
      break;
    }
  }
  if (state == State::kIdle) Enqueue(std::move(job));
}

void TextExecutor::Post(std::function<void()> work) {
  Schedule(std::make_shared<FunctionJob>(std::move(work)));
}

void TextExecutor::Enqueue(std::shared_ptr<TextJob> job) {
  bool wake = false;
  {
    MutexLock lock(mutex_);
    jobs_.push_back(std::move(job));
    wake = num_idle_ > 0;
  }
  if (wake) work_or_stop_.NotifyOne();
}

void TextExecutor::RunJob(std::shared_ptr<TextJob> job) {
  using State = TextJob::State;
  job->state_.exchange(State::kRunning, std::memory_order_acq_rel);
  job->Run();
  State state = State::kRunning;
  if (job->state_.compare_exchange_strong(state, State::kIdle,
                                          std::memory_order_acq_rel,
                                          std::memory_order_acquire)) {
    return;
  }
  // Scheduled while it ran: to the end of the line, so that others get a turn.
  job->state_.exchange(State::kQueued, std::memory_order_acq_rel);
  Enqueue(std::move(job));
}

void TextExecutor::ThreadMain() {
  while (true) {
    std::shared_ptr<TextJob> job;
    {
      MutexLock lock(mutex_);
      while (jobs_.empty() && !stop_) {
        ++num_idle_;
        work_or_stop_.Wait(mutex_);
        --num_idle_;
      }
      if (jobs_.empty()) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    RunJob(std::move(job));
  }
}

}  // namespace binarymos
