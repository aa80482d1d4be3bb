#include "engine/core/thread_pool.h"

#include <sched.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace binarymos {
namespace {

using std::chrono::microseconds;

// A number of threads, and for how long they poll.
struct Team {
  int threads;
  microseconds spin;
};

ThreadPoolOptions OptionsOf(const Team& team) {
  return {.num_threads = team.threads, .spin = team.spin};
}

class ThreadPoolTest : public testing::TestWithParam<Team> {};

TEST_P(ThreadPoolTest, EveryIndexIsVisitedOnceInRangesNoLongerThanTheGrain) {
  ThreadPool pool(OptionsOf(GetParam()));
  EXPECT_EQ(pool.num_threads(), GetParam().threads);
  for (const int64_t count : {0, 1, 2, 7, 64, 1000}) {
    for (const int64_t grain : {1, 3, 64, 5000}) {
      std::vector<std::atomic<int>> visits(count);
      std::atomic<bool> in_bounds{true};
      pool.ParallelFor(count, grain, [&](int64_t begin, int64_t end) {
        if (begin >= end || end - begin > grain) in_bounds = false;
        for (int64_t i = begin; i < end; ++i) ++visits[i];
      });
      EXPECT_TRUE(in_bounds);
      for (int64_t i = 0; i < count; ++i) ASSERT_EQ(visits[i], 1) << i;
    }
  }
}

TEST_P(ThreadPoolTest, WritesAreVisibleToTheCallerAfterEachOfManyCalls) {
  ThreadPool pool(OptionsOf(GetParam()));
  std::vector<int64_t> values(256);
  for (int64_t round = 1; round <= 500; ++round) {
    pool.ParallelFor(256, 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) values[i] += i;
    });
    ASSERT_EQ(values[255], 255 * round);
    ASSERT_EQ(values[1], round);
  }
}

TEST_P(ThreadPoolTest, AsManyRangesAsThreadsRunAtTheSameTime) {
  // Each range waits for all others: this ends only if all threads take part.
  const int threads = GetParam().threads;
  ThreadPool pool(OptionsOf(GetParam()));
  std::atomic<int> arrived{0};
  pool.ParallelFor(threads, 1, [&](int64_t, int64_t) {
    ++arrived;
    while (arrived < threads) std::this_thread::yield();
  });
  EXPECT_EQ(arrived, threads);
}

TEST_P(ThreadPoolTest, WorkThatFitsOneGrainStaysOnTheCaller) {
  ThreadPool pool(OptionsOf(GetParam()));
  std::thread::id worker;
  pool.ParallelFor(10, 10, [&](int64_t begin, int64_t end) {
    EXPECT_EQ(begin, 0);
    EXPECT_EQ(end, 10);
    worker = std::this_thread::get_id();
  });
  EXPECT_EQ(worker, std::this_thread::get_id());
}

TEST_P(ThreadPoolTest, WorkersSleepWhenThereIsNoMoreWork) {
  ThreadPool pool(OptionsOf(GetParam()));
  for (int round = 0; round < 3; ++round) {
    std::atomic<int64_t> sum{0};
    pool.ParallelFor(64, 1, [&](int64_t begin, int64_t) { sum += begin; });
    EXPECT_EQ(sum, 64 * 63 / 2);
    // Ends only if all of them give up polling.
    while (pool.num_sleeping() + 1 < pool.num_threads()) {
      std::this_thread::yield();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Teams, ThreadPoolTest,
    testing::Values(Team{1, microseconds(0)}, Team{2, microseconds(0)},
                    Team{3, microseconds(0)}, Team{8, microseconds(0)},
                    Team{2, microseconds(50)}, Team{3, microseconds(50)},
                    Team{8, microseconds(50)}),
    [](const auto& test) {
      return absl::StrCat(test.param.threads, "Threads",
                          test.param.spin.count(), "MicrosecondsOfPolling");
    });

TEST(ThreadPoolPinTest, EachWorkerKeepsToOneCpuAndTheCallerToAll) {
  cpu_set_t before;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  ThreadPool pool({.num_threads = 3, .pin = true});
  const std::thread::id caller = std::this_thread::get_id();
  std::atomic<int> arrived{0};
  std::atomic<int> pinned{0};
  pool.ParallelFor(3, 1, [&](int64_t, int64_t) {
    ++arrived;
    while (arrived < 3) std::this_thread::yield();  // one range per thread
    cpu_set_t own;
    ASSERT_EQ(sched_getaffinity(0, sizeof(own), &own), 0);
    if (std::this_thread::get_id() == caller) {
      EXPECT_TRUE(CPU_EQUAL(&own, &before));
    } else {
      EXPECT_EQ(CPU_COUNT(&own), 1);
      ++pinned;
    }
  });
  EXPECT_EQ(pinned, 2);
}

TEST(ThreadPoolOrderTest, APoolOfOneAscends) {
  ThreadPool pool(1);
  std::vector<int64_t> begins;
  pool.ParallelFor(10, 4,
                   [&](int64_t begin, int64_t) { begins.push_back(begin); });
  EXPECT_EQ(begins, (std::vector<int64_t>{0, 4, 8}));
}

}  // namespace
}  // namespace binarymos
