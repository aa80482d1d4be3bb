#include "cli/signals.h"

#include <condition_variable>
#include <csignal>
#include <mutex>

#include "gtest/gtest.h"

namespace binarymos {
namespace {

// Counts calls and waits for them.
class Counter {
 public:
  void Add() {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++count_;
    changed_.notify_all();
  }
  void WaitFor(int count) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return count_ >= count; });
  }
  int count() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return count_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int count_ = 0;
};

TEST(SignalWatcherTest, EachSignalIsOneCall) {
  Counter counter;
  SignalWatcher watcher([&] { counter.Add(); });
  kill(getpid(), SIGTERM);
  counter.WaitFor(1);
  kill(getpid(), SIGINT);
  counter.WaitFor(2);
  EXPECT_EQ(counter.count(), 2);
}

TEST(SignalWatcherTest, WithoutSignalsThereIsNoCall) {
  Counter counter;
  {
    SignalWatcher watcher([&] { counter.Add(); });
  }
  EXPECT_EQ(counter.count(), 0);
}

TEST(SignalWatcherDeathTest, AfterwardsSignalsEndTheProcessAgain) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        {
          SignalWatcher watcher([] {});
        }
        kill(getpid(), SIGTERM);
        pause();
      },
      ::testing::KilledBySignal(SIGTERM), "");
}

}  // namespace
}  // namespace binarymos
