#include "scheduler/queue_speed.h"

#include <chrono>

#include "gtest/gtest.h"

namespace binarymos {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr MonotonicTime kStart{seconds(100)};

TEST(QueueSpeedTest, CountsTheTimeInWhichSomeWait) {
  QueueSpeed speed;
  speed.Observe(kStart, 500, true);  // came and went at once
  EXPECT_EQ(speed.tokens_per_second(), 0);
  for (int i = 1; i <= 10; ++i) {
    speed.Observe(kStart + i * milliseconds(10), 20, true);
  }
  EXPECT_NEAR(speed.tokens_per_second(), 2000, 1);
  speed.Observe(kStart + milliseconds(110), 20, false);
  // Nobody waits for a while, and what comes then goes at once.
  speed.Observe(kStart + seconds(5), 7, false);
  EXPECT_NEAR(speed.tokens_per_second(), 2000, 1);
}

TEST(QueueSpeedTest, FallsWhileNothingLeaves) {
  QueueSpeed speed;
  speed.Observe(kStart, 0, true);
  speed.Observe(kStart + seconds(1), 100, true);
  speed.Observe(kStart + seconds(4), 0, true);
  EXPECT_NEAR(speed.tokens_per_second(), 20, 1);
}

TEST(QueueSpeedTest, ForgetsWhatIsLongAgo) {
  QueueSpeed speed;
  speed.Observe(kStart, 0, true);
  speed.Observe(kStart + seconds(1), 1'000'000, true);
  for (int i = 2; i <= 100; ++i) speed.Observe(kStart + seconds(i), 50, true);
  EXPECT_NEAR(speed.tokens_per_second(), 50, 10);
}

}  // namespace
}  // namespace binarymos
