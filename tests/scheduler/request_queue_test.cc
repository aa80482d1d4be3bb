#include "scheduler/request_queue.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace binarymos {
namespace {

using Reason = QueueRefusal::Reason;
using std::chrono::hours;
using std::chrono::seconds;
using std::chrono::steady_clock;

SubmitCommand MakeSubmit(std::shared_ptr<TokenStream> stream,
                         int num_samples = 1) {
  auto request = std::make_shared<Request>();
  request->id = 1;
  request->prompt = {1, 2, 3};
  request->num_samples = num_samples;
  request->stream = std::move(stream);
  return {.request = std::move(request), .reservation = {}};
}

TEST(RequestQueueTest, RefusesWhatWouldPassTheLimitOfRequests) {
  RequestQueue queue({.max_waiting_requests = 2});
  auto a = queue.TryReserve({.num_tokens = 1});
  auto b = queue.TryReserve({.num_tokens = 1});
  ASSERT_TRUE(a.ok() && b.ok());
  const auto c = queue.TryReserve({.num_tokens = 1});
  EXPECT_EQ(c.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(c.status().message().find("max_waiting_requests is 2"),
            absl::string_view::npos);
  EXPECT_EQ(queue.num_waiting(), 2);
}

TEST(RequestQueueTest, RefusesWhatWouldPassTheLimitOfTokens) {
  RequestQueue queue({.max_waiting_requests = 0, .max_waiting_tokens = 100});
  auto a = queue.TryReserve({.num_tokens = 60});
  ASSERT_TRUE(a.ok());
  const auto b = queue.TryReserve({.num_tokens = 41});
  EXPECT_EQ(b.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(b.status().message().find("max_waiting_tokens"),
            absl::string_view::npos);
  EXPECT_TRUE(queue.TryReserve({.num_tokens = 40}).ok());
}

TEST(RequestQueueTest, TenantHasLimitsOfItsOwn) {
  RequestQueue queue({.max_waiting_requests_per_tenant = 2,
                      .max_waiting_tokens_per_tenant = 100});
  QueueRefusal refusal;
  auto a = queue.TryReserve({.tenant = "a", .num_tokens = 50});
  ASSERT_TRUE(a.ok());
  const auto b = queue.TryReserve({.tenant = "a", .num_tokens = 51}, &refusal);
  EXPECT_EQ(b.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(refusal.reason, Reason::kTenantTokens);
  auto c = queue.TryReserve({.tenant = "a", .priority = -3, .num_tokens = 10});
  ASSERT_TRUE(c.ok());
  const auto d = queue.TryReserve({.tenant = "a", .num_tokens = 1}, &refusal);
  EXPECT_EQ(d.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(refusal.reason, Reason::kTenantRequests);
  EXPECT_TRUE(queue.TryReserve({.tenant = "b", .num_tokens = 100}).ok());
}

TEST(RequestQueueTest, NoWaitIsEstimatedBeforeTheSpeedIsKnown) {
  RequestQueue queue({.max_estimated_wait = seconds(1)});
  auto a = queue.TryReserve({.num_tokens = 1'000'000});
  auto b = queue.TryReserve({.num_tokens = 1, .start_by = MonotonicTime()});
  EXPECT_TRUE(a.ok() && b.ok());
}

TEST(RequestQueueTest, WaitIsForTheUrgentAndForATurnOfEachTenant) {
  RequestQueue queue({});
  queue.SetSpeed(10);
  std::vector<absl::StatusOr<Reservation>> taken;
  for (const QueueClaim& claim : std::vector<QueueClaim>{
           {.tenant = "flood", .num_tokens = 1000},
           {.tenant = "flood", .priority = -1, .num_tokens = 30},
           {.tenant = "small", .num_tokens = 20},
           {.tenant = "late", .priority = 5, .num_tokens = 500}}) {
    taken.push_back(queue.TryReserve(claim));
    ASSERT_TRUE(taken.back().ok());
  }
  const auto wait = [&](const QueueClaim& claim) {
    return std::chrono::duration<double>(queue.EstimatedWait(claim)).count();
  };
  // 30 of the urgent, 20 of its own, and as much of "flood".
  EXPECT_DOUBLE_EQ(wait({.tenant = "small", .num_tokens = 10}),
                   (30 + 20 + 30) / 10.0);
  EXPECT_DOUBLE_EQ(wait({.tenant = "flood", .num_tokens = 10}),
                   (30 + 20 + 1000) / 10.0);
  EXPECT_DOUBLE_EQ(wait({.tenant = "x", .priority = -2, .num_tokens = 9}), 0);
  EXPECT_DOUBLE_EQ(wait({.tenant = "x", .priority = 9, .num_tokens = 9}),
                   (30 + 1000 + 20 + 500) / 10.0);
}

TEST(RequestQueueTest, RefusesWhatWouldWaitTooLong) {
  RequestQueue queue({.max_estimated_wait = seconds(10)});
  queue.SetSpeed(10);
  QueueRefusal refusal;
  auto a = queue.TryReserve({.num_tokens = 120});
  ASSERT_TRUE(a.ok());
  const auto b = queue.TryReserve({.num_tokens = 5}, &refusal);
  EXPECT_EQ(b.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(refusal.reason, Reason::kEstimatedWait);
  EXPECT_EQ(refusal.retry_after, seconds(2));
}

TEST(RequestQueueTest, RefusesWhatCannotBeginInTime) {
  RequestQueue queue({});
  queue.SetSpeed(10);
  auto a = queue.TryReserve({.num_tokens = 120});
  ASSERT_TRUE(a.ok());
  const MonotonicTime now{hours(1)};
  QueueRefusal refusal;
  const auto late = queue.TryReserve(
      {.num_tokens = 5, .now = now, .start_by = now + seconds(11)}, &refusal);
  EXPECT_EQ(late.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(refusal.reason, Reason::kDeadline);
  EXPECT_TRUE(
      queue
          .TryReserve(
              {.num_tokens = 5, .now = now, .start_by = now + seconds(13)})
          .ok());
}

TEST(RequestQueueTest, FullQueueSaysWhenAPlaceMayBeFree) {
  RequestQueue queue({.max_waiting_requests = 2});
  queue.SetSpeed(100);
  auto a = queue.TryReserve({.num_tokens = 100});
  auto b = queue.TryReserve({.num_tokens = 300});
  QueueRefusal refusal;
  EXPECT_FALSE(queue.TryReserve({.num_tokens = 1}, &refusal).ok());
  EXPECT_EQ(refusal.reason, Reason::kRequests);
  EXPECT_EQ(refusal.retry_after, seconds(2));
}

TEST(RequestQueueTest, PlaceIsFreeAgainWhenItsReservationIsGone) {
  RequestQueue queue({.max_waiting_requests = 1});
  {
    auto a = queue.TryReserve({.num_tokens = 5});
    ASSERT_TRUE(a.ok());
    const Reservation moved = *std::move(a);
    EXPECT_EQ(queue.num_waiting(), 1);
  }
  EXPECT_EQ(queue.num_waiting(), 0);
  EXPECT_TRUE(queue.TryReserve({.num_tokens = 5}).ok());
}

TEST(RequestQueueTest, BoundHoldsWhenManyThreadsReserve) {
  constexpr int kLimit = 10;
  RequestQueue queue({.max_waiting_requests = kLimit});
  std::atomic<int> num_held{0};
  std::atomic<int> num_reserved{0};
  std::atomic<bool> passed{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        auto reservation = queue.TryReserve({.num_tokens = 1});
        if (!reservation.ok()) continue;
        ++num_reserved;
        if (++num_held > kLimit) passed = true;
        std::this_thread::yield();
        --num_held;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_FALSE(passed);
  EXPECT_GT(num_reserved, 0);
  EXPECT_EQ(queue.num_waiting(), 0);
}

TEST(RequestQueueTest, ExactlyTheLimitIsReservedAtTheSameTime) {
  constexpr int kLimit = 50;
  RequestQueue queue({.max_waiting_requests = kLimit});
  std::vector<std::vector<Reservation>> held(8);
  std::vector<std::thread> threads;
  for (std::vector<Reservation>& mine : held) {
    threads.emplace_back([&] {
      for (int i = 0; i < 100; ++i) {
        auto reservation = queue.TryReserve({.num_tokens = 1});
        if (reservation.ok()) mine.push_back(*std::move(reservation));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  size_t num_held = 0;
  for (const std::vector<Reservation>& mine : held) num_held += mine.size();
  EXPECT_EQ(num_held, size_t{kLimit});
}

TEST(RequestQueueTest, CommandsComeOutInOrder) {
  RequestQueue queue({});
  queue.Push(AbortCommand{.request = 1, .status = {}});
  queue.Push(StopAtCommand{.request = 2});
  std::vector<Command> commands;
  queue.TakeAll(commands);
  queue.Push(FlushPrefixCacheCommand{});
  queue.TakeAll(commands);
  ASSERT_EQ(commands.size(), 3u);
  EXPECT_TRUE(std::holds_alternative<AbortCommand>(commands[0]));
  EXPECT_TRUE(std::holds_alternative<StopAtCommand>(commands[1]));
  EXPECT_TRUE(std::holds_alternative<FlushPrefixCacheCommand>(commands[2]));
}

TEST(RequestQueueTest, ClosedQueueRefusesRequestsAndPassesCommandsOn) {
  RequestQueue queue({});
  queue.Close();
  queue.Close();
  EXPECT_EQ(queue.TryReserve({.num_tokens = 1}).status().code(),
            absl::StatusCode::kUnavailable);
  auto stream = std::make_shared<TokenStream>(nullptr);
  queue.Push(MakeSubmit(stream, 2));
  queue.Push(StopAtCommand{});

  std::vector<TokenEvent> events;
  stream->Drain(events);
  ASSERT_EQ(events.size(), 2u);
  for (int sample = 0; sample < 2; ++sample) {
    const TokenEvent& event = events[static_cast<size_t>(sample)];
    EXPECT_EQ(event.sample, sample);
    ASSERT_TRUE(event.finish.has_value());
    EXPECT_EQ(event.finish->reason, FinishReason::kError);
    EXPECT_EQ(event.finish->status.code(), absl::StatusCode::kUnavailable);
  }
  std::vector<Command> commands;
  queue.TakeAll(commands);
  ASSERT_EQ(commands.size(), 1u);
  EXPECT_TRUE(std::holds_alternative<StopAtCommand>(commands[0]));
}

TEST(RequestQueueTest, RefusedSubmitGivesItsPlaceBack) {
  RequestQueue queue({.max_waiting_requests = 1});
  auto reservation = queue.TryReserve({.num_tokens = 1});
  ASSERT_TRUE(reservation.ok());
  SubmitCommand submit = MakeSubmit(std::make_shared<TokenStream>(nullptr));
  submit.reservation = *std::move(reservation);
  queue.Close();
  queue.Push(std::move(submit));
  EXPECT_EQ(queue.num_waiting(), 0);
}

TEST(RequestQueueTest, NothingIsKeptAfterShutdown) {
  RequestQueue queue({});
  queue.Shutdown();
  queue.Push(AbortCommand{});
  std::vector<Command> commands;
  queue.TakeAll(commands);
  EXPECT_TRUE(commands.empty());
}

TEST(RequestQueueTest, WaitEndsWithACommandAWakeOrTheTime) {
  RequestQueue queue({});
  const MonotonicTime never = steady_clock::now() + hours(1);
  queue.WaitForCommands(steady_clock::now());  // passed already

  queue.Wake();
  queue.WaitForCommands(never);

  std::thread pusher([&] { queue.Push(FlushPrefixCacheCommand{}); });
  queue.WaitForCommands(never);
  pusher.join();

  std::vector<Command> commands;
  queue.TakeAll(commands);
  std::thread waker([&] { queue.Wake(); });
  queue.WaitForCommands(never);
  waker.join();
  EXPECT_EQ(commands.size(), 1u);
}

}  // namespace
}  // namespace binarymos
