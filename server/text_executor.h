// Threads for text work: tokenize, detokenize, feed the streams.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "engine/core/mutex.h"

namespace binarymos {

// Something that has text work to do now and then, such as one request.
class TextJob {
 public:
  virtual ~TextJob() = default;

  // Does what there is to do now, without waiting for anybody. Never runs
  // concurrently with itself.
  virtual void Run() = 0;

 private:
  friend class TextExecutor;
  enum class State : int { kIdle, kQueued, kRunning, kRunningAgain };
  std::atomic<State> state_{State::kIdle};
};

// A small, fixed team of threads that runs jobs in the order in which they
// were scheduled. Thread-safe.
class TextExecutor {
 public:
  explicit TextExecutor(int num_threads);
  // Runs what is scheduled, then ends the threads.
  ~TextExecutor();
  TextExecutor(const TextExecutor&) = delete;
  TextExecutor& operator=(const TextExecutor&) = delete;

  // Makes job->Run() begin once more after this call. Several calls before it
  // begins count as one. Quick: it runs in the serving loop.
  void Schedule(std::shared_ptr<TextJob> job);

  // Runs `work` once.
  void Post(std::function<void()> work);

 private:
  void ThreadMain();
  void RunJob(std::shared_ptr<TextJob> job);
  void Enqueue(std::shared_ptr<TextJob> job);

  Mutex mutex_;
  CondVar work_or_stop_;
  std::deque<std::shared_ptr<TextJob>> jobs_ ABSL_GUARDED_BY(mutex_);
  int num_idle_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;

  std::vector<std::thread> threads_;  // constant after construction
};

}  // namespace binarymos
