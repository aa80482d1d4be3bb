#include "scheduler/serving_loop.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "tests/scheduler/fake_model_runner.h"
#include "tests/scheduler/scheduler_driver.h"

namespace binarymos {
namespace {

constexpr MonotonicTime kNow{std::chrono::seconds(1000)};

// What a stream signals. The stream's owner may still be inside on_ready when
// its reader has seen all and gone.
struct Wake {
  Mutex mutex;
  CondVar changed;
  bool ready ABSL_GUARDED_BY(mutex) = false;
};

// A request and what its reader has seen.
class Client {
 public:
  Client(RequestId id, int num_prompt_tokens, int max_tokens,
         int num_samples = 1)
      : request_(MakeRequest(id, num_prompt_tokens, max_tokens)) {
    request_->num_samples = num_samples;
    request_->stream = std::make_shared<TokenStream>([wake = wake_] {
      MutexLock lock(wake->mutex);
      wake->ready = true;
      wake->changed.NotifyOne();
    });
  }

  Request& request() { return *request_; }

  void Submit(ServingLoop& loop) {
    auto reservation =
        loop.queue().TryReserve({.num_tokens = std::ssize(request_->prompt)});
    ASSERT_TRUE(reservation.ok()) << reservation.status();
    loop.queue().Push(SubmitCommand{.request = request_,
                                    .reservation = *std::move(reservation)});
  }

  void Read() {
    request_->stream->Drain(events_);
    for (TokenEvent& event : events_) {
      if (event.token != kNoToken) tokens_.push_back(event.token);
      if (event.finish) finishes_.push_back(*std::move(event.finish));
    }
    events_.clear();
  }

  // Reads until `done` or the end of every sample.
  template <typename Done>
  void ReadUntil(Done done) {
    while (true) {
      Read();
      if (done() || ended()) return;
      MutexLock lock(wake_->mutex);
      while (!wake_->ready) wake_->changed.Wait(wake_->mutex);
      wake_->ready = false;
    }
  }
  void ReadToEnd() {
    ReadUntil([] { return false; });
  }

  bool ended() const {
    return static_cast<int>(finishes_.size()) == request_->num_samples;
  }
  const std::vector<TokenId>& tokens() const { return tokens_; }
  const std::vector<Finish>& finishes() const { return finishes_; }

  void ExpectReference() const {
    ASSERT_EQ(finishes_.size(), 1u);
    const ReferenceOutput reference = FakeReference(*request_, 0);
    EXPECT_EQ(tokens_, reference.tokens);
    EXPECT_EQ(finishes_[0].reason, reference.reason);
  }
  void ExpectStatus(absl::StatusCode code) const {
    ASSERT_EQ(static_cast<int>(finishes_.size()), request_->num_samples);
    for (const Finish& finish : finishes_) {
      EXPECT_EQ(finish.status.code(), code) << finish.status;
    }
  }

 private:
  std::shared_ptr<Request> request_;
  std::shared_ptr<Wake> wake_ = std::make_shared<Wake>();
  std::vector<TokenEvent> events_;
  std::vector<TokenId> tokens_;
  std::vector<Finish> finishes_;
};

class ServingLoopTest : public ::testing::TestWithParam<int> {
 protected:
  void RunToEnd() {
    for (int i = 0; i < 1000; ++i) {
      if (!loop_.Step(kNow)) return;
    }
    FAIL() << "there is no end";
  }

  SchedulerOptions options_ = SmallOptions();
  FakeModelRunner runner_{options_.cache, GetParam()};
  ServingLoop loop_{runner_, options_, {.max_waiting_requests = 4}};
};
INSTANTIATE_TEST_SUITE_P(Depth, ServingLoopTest, ::testing::Values(1, 2));

TEST_P(ServingLoopTest, StreamsWhatTheModelGives) {
  Client client(1, 10, 20);
  client.Submit(loop_);
  EXPECT_TRUE(loop_.Step(kNow));
  RunToEnd();
  client.Read();
  client.ExpectReference();
  EXPECT_EQ(runner_.num_sequences(), 0);
  EXPECT_EQ(runner_.num_steps_in_flight(), 0);
  EXPECT_FALSE(loop_.Step(kNow));
}

TEST_P(ServingLoopTest, TokensArriveStepByStep) {
  Client client(1, 10, 20);
  client.Submit(loop_);
  for (int i = 1; i < GetParam(); ++i) loop_.Step(kNow);
  for (size_t i = 1; i <= 20; ++i) {
    loop_.Step(kNow);
    client.Read();
    EXPECT_EQ(client.tokens().size(), i);
  }
}

TEST_P(ServingLoopTest, PlaceInTheQueueIsKeptUntilTheFirstSampleRuns) {
  std::vector<std::unique_ptr<Client>> clients;
  for (RequestId id = 1; id <= 3; ++id) {
    clients.push_back(std::make_unique<Client>(id, 30, 2, 2));
    clients.back()->Submit(loop_);
  }
  EXPECT_EQ(loop_.queue().num_waiting(), 3);
  loop_.Step(kNow);  // the budget lets the first one in
  EXPECT_EQ(loop_.queue().num_waiting(), 2);
  loop_.queue().Push(
      AbortCommand{.request = 3, .status = absl::CancelledError()});
  loop_.Step(kNow);
  EXPECT_LE(loop_.queue().num_waiting(), 1);
  RunToEnd();
  EXPECT_EQ(loop_.queue().num_waiting(), 0);
}

TEST_P(ServingLoopTest, CommandsReachTheScheduler) {
  Client stopped(1, 5, 50);
  Client aborted(2, 5, 50);
  Client flushed(3, 9, 1);
  stopped.Submit(loop_);
  aborted.Submit(loop_);
  for (int i = 0; i < 6; ++i) loop_.Step(kNow);
  loop_.queue().Push(StopAtCommand{.request = 1, .sample = 0, .num_tokens = 3});
  loop_.queue().Push(
      AbortCommand{.request = 2, .status = absl::CancelledError()});
  RunToEnd();
  stopped.Read();
  aborted.Read();
  EXPECT_EQ(stopped.finishes().at(0).reason, FinishReason::kStopString);
  EXPECT_EQ(stopped.finishes().at(0).num_output_tokens, 3);
  aborted.ExpectStatus(absl::StatusCode::kCancelled);

  flushed.Submit(loop_);
  RunToEnd();
  loop_.queue().Push(FlushPrefixCacheCommand{});
  Client again(3, 9, 1);
  again.Submit(loop_);
  RunToEnd();
  again.Read();
  EXPECT_EQ(again.finishes().at(0).num_cached_tokens, 0);

  Client left(4, 9, 50);
  left.Submit(loop_);
  loop_.Step(kNow);
  loop_.queue().Push(AbortAllCommand{.status = absl::UnavailableError("")});
  RunToEnd();
  left.Read();
  left.ExpectStatus(absl::StatusCode::kUnavailable);
}

TEST_P(ServingLoopTest, DeadlineEndsARequestThatWaits) {
  Client client(1, 10, 20);
  client.request().deadline = kNow + std::chrono::seconds(1);
  client.Submit(loop_);
  loop_.Step(kNow);
  loop_.Step(kNow + std::chrono::seconds(2));
  client.Read();
  client.ExpectStatus(absl::StatusCode::kDeadlineExceeded);
}

TEST_P(ServingLoopTest, PublishesStatsAndBeats) {
  Client client(1, 10, 3);
  client.Submit(loop_);
  RunToEnd();
  const SchedulerStats stats = loop_.status().stats();
  EXPECT_EQ(stats.num_generated_tokens, 3);
  EXPECT_EQ(stats.num_steps, 3);
  EXPECT_EQ(stats.num_running, 0);
  EXPECT_EQ(stats.kv_usage(), 0);
  EXPECT_GT(stats.schedule_time.count(), 0);
  EXPECT_EQ(stats.longest_step, std::chrono::milliseconds(1));
  EXPECT_NE(loop_.status().last_beat(), MonotonicTime());
}

TEST_P(ServingLoopTest, FailedSubmitTellsEveryStream) {
  runner_.FailSubmitAt(2, absl::UnavailableError("the device is gone"));
  Client running(1, 20, 20, 2);
  Client waiting(2, 20, 20);
  running.Submit(loop_);
  waiting.Submit(loop_);
  RunToEnd();
  running.Read();
  waiting.Read();
  running.ExpectStatus(absl::StatusCode::kUnavailable);
  waiting.ExpectStatus(absl::StatusCode::kUnavailable);
  EXPECT_EQ(loop_.status().status(),
            absl::UnavailableError("the device is gone"));
  EXPECT_FALSE(loop_.status().IsAlive(kNow));
  EXPECT_EQ(loop_.queue().num_waiting(), 0);
  EXPECT_EQ(loop_.queue().TryReserve({.num_tokens = 1}).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_FALSE(loop_.Step(kNow));
}

TEST_P(ServingLoopTest, FailedWaitTellsEveryStream) {
  runner_.FailWaitAt(2, absl::InternalError("illegal address"));
  Client client(1, 20, 20);
  client.Submit(loop_);
  RunToEnd();
  client.Read();
  client.ExpectStatus(absl::StatusCode::kInternal);
  EXPECT_EQ(loop_.status().status(), absl::InternalError("illegal address"));
}

TEST_P(ServingLoopTest, StopWithoutStartEndsEveryRequest) {
  Client running(1, 10, 20);
  Client queued(2, 10, 20);
  running.Submit(loop_);
  loop_.Step(kNow);
  loop_.Step(kNow);
  queued.Submit(loop_);
  loop_.Stop();
  loop_.Stop();
  for (Client* client : {&running, &queued}) {
    client->Read();
    client->ExpectStatus(absl::StatusCode::kUnavailable);
  }
  EXPECT_EQ(runner_.num_steps_in_flight(), 0);
  EXPECT_EQ(runner_.num_sequences(), 0);
  EXPECT_EQ(loop_.status().stats().kv_usage(), 0);
  EXPECT_TRUE(loop_.status().status().ok());
}

TEST_P(ServingLoopTest, ThreadServesManyClientsAndStops) {
  loop_.Start();
  std::vector<std::thread> threads;
  std::atomic<int> num_good{0};
  for (RequestId c = 0; c < 4; ++c) {
    threads.emplace_back([&, c] {
      for (RequestId i = 0; i < 20; ++i) {
        Client client(1 + c * 100 + i, static_cast<int>(3 + i), 8);
        client.Submit(loop_);
        if (i % 5 == 4) {  // goes away in the middle
          client.ReadUntil([&] { return client.tokens().size() >= 2; });
          loop_.queue().Push(AbortCommand{.request = client.request().id,
                                          .status = absl::CancelledError()});
          client.ReadToEnd();
        } else {
          client.ReadToEnd();
          client.ExpectReference();
        }
        ++num_good;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_good, 80);
  EXPECT_EQ(loop_.status().stats().num_running, 0);
  EXPECT_TRUE(loop_.status().IsAlive(std::chrono::steady_clock::now()));

  Client last(999, 3, 200);
  last.Submit(loop_);
  last.ReadUntil([&] { return !last.tokens().empty(); });
  loop_.Stop();
  last.ReadToEnd();
  EXPECT_EQ(runner_.num_steps_in_flight(), 0);
}

TEST_P(ServingLoopTest, ThreadEndsARequestAtItsDeadline) {
  loop_.Start();
  Client client(1, 10, 240);
  client.request().deadline =
      std::chrono::steady_clock::now() + std::chrono::microseconds(1);
  client.Submit(loop_);
  client.ReadToEnd();
  client.ExpectStatus(absl::StatusCode::kDeadlineExceeded);
}

TEST_P(ServingLoopTest, FailureEndsTheThread) {
  runner_.FailSubmitAt(3, absl::InternalError("broken"));
  loop_.Start();
  Client client(1, 10, 240);
  client.Submit(loop_);
  client.ReadToEnd();
  client.ExpectStatus(absl::StatusCode::kInternal);
  loop_.Stop();
  EXPECT_EQ(loop_.status().status(), absl::InternalError("broken"));
}

}  // namespace
}  // namespace binarymos
