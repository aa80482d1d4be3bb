#include "scheduler/loop_status.h"

#include <chrono>
#include <thread>

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace binarymos {
namespace {

using std::chrono::seconds;

constexpr MonotonicTime kNow{seconds(1000)};

TEST(LoopStatusTest, IsNotAliveBeforeTheFirstBeat) {
  LoopStatus status;
  EXPECT_FALSE(status.IsAlive(MonotonicTime(seconds(1))));
}

TEST(LoopStatusTest, LivesThirtySecondsAfterABeat) {
  LoopStatus status;
  status.Beat(kNow);
  EXPECT_EQ(status.last_beat(), kNow);
  EXPECT_TRUE(status.IsAlive(kNow + seconds(30)));
  EXPECT_FALSE(status.IsAlive(kNow + seconds(31)));
}

TEST(LoopStatusTest, HasPatienceForFiveOfTheLongestSteps) {
  LoopStatus status;
  SchedulerStats stats;
  stats.longest_step = seconds(10);
  status.Publish(stats);
  status.Beat(kNow);
  EXPECT_TRUE(status.IsAlive(kNow + seconds(50)));
  EXPECT_FALSE(status.IsAlive(kNow + seconds(51)));
}

TEST(LoopStatusTest, FirstFailureIsFinal) {
  LoopStatus status;
  status.Beat(kNow);
  status.SetFailed(absl::UnavailableError("the device is gone"));
  status.SetFailed(absl::InternalError("later"));
  EXPECT_FALSE(status.IsAlive(kNow));
  EXPECT_EQ(status.status(), absl::UnavailableError("the device is gone"));
}

TEST(LoopStatusTest, SnapshotIsReadWhileItIsWritten) {
  LoopStatus status;
  std::thread writer([&] {
    SchedulerStats stats;
    for (int i = 1; i <= 2000; ++i) {
      stats.num_steps = i;
      stats.num_generated_tokens = i;
      stats.mean_gate.assign(4, static_cast<float>(i));
      status.Publish(stats);
      status.Beat(kNow);
    }
  });
  int64_t last = 0;
  while (last < 2000) {
    const SchedulerStats stats = status.stats();
    EXPECT_EQ(stats.num_steps, stats.num_generated_tokens);
    EXPECT_GE(stats.num_steps, last);
    last = stats.num_steps;
    if (!stats.mean_gate.empty()) {
      EXPECT_EQ(stats.mean_gate[3], static_cast<float>(last));
    }
  }
  writer.join();
}

}  // namespace
}  // namespace binarymos
