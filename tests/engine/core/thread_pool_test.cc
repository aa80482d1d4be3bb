#include "engine/core/thread_pool.h"

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace binarymos {
namespace {

class ThreadPoolTest : public testing::TestWithParam<int> {};

TEST_P(ThreadPoolTest, EveryIndexIsVisitedOnceInRangesNoLongerThanTheGrain) {
  ThreadPool pool(GetParam());
  EXPECT_EQ(pool.num_threads(), GetParam());
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
  ThreadPool pool(GetParam());
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
  const int threads = GetParam();
  ThreadPool pool(threads);
  std::atomic<int> arrived{0};
  pool.ParallelFor(threads, 1, [&](int64_t, int64_t) {
    ++arrived;
    while (arrived < threads) std::this_thread::yield();
  });
  EXPECT_EQ(arrived, threads);
}

TEST_P(ThreadPoolTest, WorkThatFitsOneGrainStaysOnTheCaller) {
  ThreadPool pool(GetParam());
  std::thread::id worker;
  pool.ParallelFor(10, 10, [&](int64_t begin, int64_t end) {
    EXPECT_EQ(begin, 0);
    EXPECT_EQ(end, 10);
    worker = std::this_thread::get_id();
  });
  EXPECT_EQ(worker, std::this_thread::get_id());
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, testing::Values(1, 2, 3, 8));

TEST(ThreadPoolOrderTest, APoolOfOneAscends) {
  ThreadPool pool(1);
  std::vector<int64_t> begins;
  pool.ParallelFor(10, 4,
                   [&](int64_t begin, int64_t) { begins.push_back(begin); });
  EXPECT_EQ(begins, (std::vector<int64_t>{0, 4, 8}));
}

}  // namespace
}  // namespace binarymos
