#include "engine/core/mutex.h"

#include <chrono>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace binarymos {
namespace {

TEST(MutexTest, OneThreadAtATimeIsInside) {
  Mutex mutex;
  int count = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int n = 0; n < 10000; ++n) {
        MutexLock lock(mutex);
        ++count;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(count, 40000);
}

TEST(CondVarTest, ANotificationWakesAWaiter) {
  Mutex mutex;
  CondVar changed;
  int turn = 0;
  std::thread other([&] {
    MutexLock lock(mutex);
    while (turn != 1) changed.Wait(mutex);
    turn = 2;
    changed.NotifyAll();
  });
  {
    MutexLock lock(mutex);
    turn = 1;
    changed.NotifyOne();
    while (turn != 2) changed.Wait(mutex);
  }
  other.join();
  EXPECT_EQ(turn, 2);
}

TEST(CondVarTest, ADeadlineThatHasPassedReturnsFalseAndHoldsTheLock) {
  Mutex mutex;
  CondVar never;
  {
    MutexLock lock(mutex);
    EXPECT_FALSE(never.WaitUntil(
        mutex, std::chrono::steady_clock::now() - std::chrono::seconds(1)));
  }
  MutexLock lock(mutex);  // hangs if the wait left it locked
}

}  // namespace
}  // namespace binarymos
