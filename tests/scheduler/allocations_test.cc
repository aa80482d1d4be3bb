// Counts what the steps of a busy scheduler allocate.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "gtest/gtest.h"
#include "scheduler/scheduler.h"
#include "tests/scheduler/scheduler_driver.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kCounts = false;  // the sanitizer's own allocator has to stay
#else
constexpr bool kCounts = true;
#endif

namespace {
std::atomic<int64_t> num_allocations{0};
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
void* operator new(std::size_t size) {
  num_allocations.fetch_add(1, std::memory_order_relaxed);
  void* const memory = std::malloc(size);
  if (memory == nullptr) std::abort();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t /*size*/) noexcept {
  std::free(memory);
}
#endif

namespace binarymos {
namespace {

// Some token for every row that samples.
void Answer(const BatchPlan& plan, StepResult& result) {
  result.step = plan.step;
  result.rows.resize(plan.rows.size());
  for (size_t i = 0; i < plan.rows.size(); ++i) {
    result.rows[i].slot = plan.rows[i].slot;
    result.rows[i].token = plan.rows[i].sample ? 1 : kNoToken;
  }
}

TEST(AllocationsTest, StepsOfSequencesThatDecodeAllocateNothing) {
  if (!kCounts) GTEST_SKIP() << "a sanitizer has an allocator of its own";
  constexpr int kNumRunning = 64;
  constexpr int kNumSteps = 200;
  SchedulerOptions options = SmallOptions(20'000);
  options.cache.max_num_seqs = kNumRunning;
  options.cache.max_num_batched_tokens = 1024;
  options.cache.max_model_len = 1024;
  Scheduler scheduler(options);
  MonotonicTime now{};
  for (RequestId id = 1; id <= 4 * kNumRunning; ++id) {
    const auto request = MakeRequest(id, 20, 900);
    request->deadline = now + std::chrono::hours(1);
    scheduler.Add(request, now);
  }
  // One step ahead, as the loop runs a device.
  StepResult results[2];
  std::vector<StreamEvent> events;
  int64_t at_first = 0;
  Answer(scheduler.Schedule(now), results[0]);
  for (int step = 1; step < 20 + kNumSteps; ++step) {
    if (step == 20) at_first = num_allocations;
    now += std::chrono::milliseconds(1);
    Answer(scheduler.Schedule(now), results[step % 2]);
    scheduler.Commit(results[(step - 1) % 2], now);
    events.clear();
    scheduler.TakeEvents(events);
  }
  EXPECT_EQ(scheduler.stats().num_running, kNumRunning);
  EXPECT_EQ(events.size(), size_t{kNumRunning});
  EXPECT_EQ(num_allocations - at_first, 0);
}

}  // namespace
}  // namespace binarymos
