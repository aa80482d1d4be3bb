#include "server/text_executor.h"

#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "engine/core/mutex.h"
#include "gtest/gtest.h"

namespace binarymos {
namespace {

// Wakes those who wait for something to have happened `n` times.
class Counter {
 public:
  void Add() {
    MutexLock lock(mutex_);
    ++count_;
    changed_.NotifyAll();
  }
  void WaitFor(int n) {
    MutexLock lock(mutex_);
    while (count_ < n) changed_.Wait(mutex_);
  }
  int count() {
    MutexLock lock(mutex_);
    return count_;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  int count_ ABSL_GUARDED_BY(mutex_) = 0;
};

class FunctionJob : public TextJob {
 public:
  explicit FunctionJob(std::function<void()> run) : run_(std::move(run)) {}
  void Run() override { run_(); }

 private:
  std::function<void()> run_;
};

TEST(TextExecutorTest, PostedWorkRuns) {
  Counter ran;
  TextExecutor executor(2);
  for (int i = 0; i < 100; ++i) executor.Post([&] { ran.Add(); });
  ran.WaitFor(100);
}

TEST(TextExecutorTest, DestructorRunsWhatIsScheduled) {
  Counter ran;
  {
    TextExecutor executor(1);
    for (int i = 0; i < 100; ++i) executor.Post([&] { ran.Add(); });
  }
  EXPECT_EQ(ran.count(), 100);
}

TEST(TextExecutorTest, JobNeverRunsConcurrentlyWithItself) {
  std::atomic<int> running{0};
  std::atomic<bool> overlapped{false};
  int runs = 0;  // not atomic: the runs are ordered
  {
    TextExecutor executor(4);
    auto job = std::make_shared<FunctionJob>([&] {
      if (++running > 1) overlapped = true;
      ++runs;
      --running;
    });
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 1000; ++i) executor.Schedule(job);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  EXPECT_FALSE(overlapped);
  EXPECT_GE(runs, 1);
  EXPECT_LE(runs, 4000);
}

TEST(TextExecutorTest, ScheduleDuringARunRunsAgain) {
  Counter entered;
  Counter proceed;
  TextExecutor executor(2);
  auto job = std::make_shared<FunctionJob>([&] {
    entered.Add();
    proceed.WaitFor(1);
  });
  executor.Schedule(job);
  entered.WaitFor(1);
  executor.Schedule(job);
  executor.Schedule(job);  // counts with the one before
  proceed.Add();
  entered.WaitFor(2);
  Counter done;
  executor.Post([&] { done.Add(); });
  done.WaitFor(1);
  EXPECT_EQ(entered.count(), 2);
}

TEST(TextExecutorTest, EveryScheduleIsSeenByALaterRun) {
  std::atomic<int> written{0};
  int seen = 0;
  {
    TextExecutor executor(2);
    auto job = std::make_shared<FunctionJob>([&] { seen = written; });
    for (int i = 0; i < 10'000; ++i) {
      ++written;
      executor.Schedule(job);
    }
  }
  EXPECT_EQ(seen, 10'000);
}

TEST(TextExecutorTest, BusyJobLetsOthersHaveATurn) {
  Counter other;
  Counter last;
  std::atomic<bool> stop{false};
  std::shared_ptr<FunctionJob> busy;  // outlives the executor that runs it
  TextExecutor executor(1);
  busy = std::make_shared<FunctionJob>([&] {
    if (!stop) executor.Schedule(busy);
  });
  executor.Schedule(busy);
  executor.Post([&] { other.Add(); });
  other.WaitFor(1);
  stop = true;
  executor.Post([&] { last.Add(); });
  last.WaitFor(1);
}

}  // namespace
}  // namespace binarymos
