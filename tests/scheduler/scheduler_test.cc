#include "scheduler/scheduler.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/scheduler/scheduler_driver.h"
#include "tests/scheduler/scheduler_test_peer.h"

namespace binarymos {
namespace {

using ::testing::ElementsAre;

std::vector<int> RowSizes(const BatchPlan& plan) {
  std::vector<int> sizes;
  for (const BatchRow& row : plan.rows) sizes.push_back(row.num_tokens());
  return sizes;
}

void ExpectReference(SchedulerDriver& driver, const Request& request,
                     int sample = 0) {
  const ReferenceOutput reference = FakeReference(request, sample);
  const SampleOutput& output = driver.output(request.id, sample);
  EXPECT_EQ(output.tokens, reference.tokens) << "request " << request.id;
  ASSERT_EQ(output.finishes.size(), 1u) << "request " << request.id;
  EXPECT_EQ(output.finishes[0].reason, reference.reason);
  EXPECT_EQ(output.finishes[0].num_output_tokens,
            static_cast<int>(reference.tokens.size()));
}

// With steps one at a time, and with one step ahead.
class SchedulerTest : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Depth, SchedulerTest, ::testing::Values(1, 2));

TEST_P(SchedulerTest, GeneratesWhatTheModelGivesAlone) {
  SchedulerDriver driver(SmallOptions(), GetParam());
  const auto request = MakeRequest(1, 10, 20);
  driver.Add(request);
  EXPECT_TRUE(driver.RunToEnd());
  ExpectReference(driver, *request);
  SchedulerTestPeer::CheckIdle(driver.scheduler);
  EXPECT_EQ(driver.runner.num_sequences(), 0);
}

TEST_P(SchedulerTest, LongPromptIsComputedInChunksOfTheBudget) {
  SchedulerOptions options = SmallOptions();
  options.cache.max_num_batched_tokens = 8;
  SchedulerDriver driver(options, GetParam());
  const auto request = MakeRequest(1, 19, 2);
  driver.Add(request);
  for (const int size : {8, 8, 3}) {
    driver.Step();
    EXPECT_THAT(RowSizes(driver.plan()), ElementsAre(size));
    EXPECT_EQ(driver.plan().rows[0].sample, size == 3);
  }
  EXPECT_TRUE(driver.RunToEnd());
  ExpectReference(driver, *request);
}

TEST_P(SchedulerTest, ThresholdLeavesRoomForOthers) {
  SchedulerOptions options = SmallOptions();
  options.cache.max_num_batched_tokens = 16;
  options.long_prefill_token_threshold = 8;
  SchedulerDriver driver(options, GetParam());
  driver.Add(MakeRequest(1, 30, 2));
  driver.Add(MakeRequest(2, 6, 2));
  driver.Step();
  EXPECT_THAT(RowSizes(driver.plan()), ElementsAre(8, 6));
}

TEST_P(SchedulerTest, PromptChunksAndDecodesShareAStep) {
  SchedulerOptions options = SmallOptions();
  options.cache.max_num_batched_tokens = 8;
  SchedulerDriver driver(options, GetParam());
  driver.Add(MakeRequest(1, 3, 20));
  driver.Step();
  driver.Add(MakeRequest(2, 20, 1));
  driver.Step();
  EXPECT_THAT(RowSizes(driver.plan()), ElementsAre(1, 7));
}

TEST_P(SchedulerTest, MoreUrgentRequestsComeFirst) {
  SchedulerOptions options = SmallOptions();
  options.cache.max_num_seqs = 1;
  SchedulerDriver driver(options, GetParam());
  driver.Add(MakeRequest(1, 4, 3));
  auto urgent = MakeRequest(2, 4, 1);
  urgent->priority = -5;
  driver.Add(urgent);
  while (!driver.output(1).ended() && !driver.output(2).ended()) driver.Step();
  EXPECT_TRUE(driver.output(2).ended());
  EXPECT_FALSE(driver.output(1).ended());
}

TEST_P(SchedulerTest, EndsAtEosAndStopTokensButNotBeforeMinTokens) {
  // Find what the model says, then make its third token an end.
  const auto plain = MakeRequest(1, 5, 10);
  const TokenId third = FakeReference(*plain, 0).tokens[2];

  for (const bool eos : {true, false}) {
    for (const int min_tokens : {0, 6}) {
      SchedulerDriver driver(SmallOptions(), GetParam());
      const auto request = MakeRequest(1, 5, 10);
      (eos ? request->eos_tokens : request->stop_tokens) = {third};
      request->sampling.min_tokens = min_tokens;
      request->sampling.suppressed_tokens = {third};
      driver.Add(request);
      EXPECT_TRUE(driver.RunToEnd());
      ExpectReference(driver, *request);
      const Finish& finish = driver.output(1).finishes[0];
      if (min_tokens == 0) {
        EXPECT_EQ(finish.num_output_tokens, 3);
        EXPECT_EQ(finish.matched_token, third);
        EXPECT_EQ(finish.reason,
                  eos ? FinishReason::kEos : FinishReason::kStopToken);
      } else {
        EXPECT_GE(finish.num_output_tokens, 7);
      }
    }
  }
}

TEST_P(SchedulerTest, StopAtEndsASampleAndReportsNothingAfterIt) {
  SchedulerDriver driver(SmallOptions(), GetParam());
  const auto request = MakeRequest(1, 5, 50);
  driver.Add(request);
  while (driver.output(1).tokens.size() < 6) driver.Step();
  driver.StopAt(1, 0, 4);
  const SampleOutput& output = driver.output(1);
  ASSERT_EQ(output.finishes.size(), 1u);
  EXPECT_EQ(output.finishes[0].reason, FinishReason::kStopString);
  EXPECT_EQ(output.finishes[0].num_output_tokens, 4);
  const size_t num_tokens = output.tokens.size();
  EXPECT_TRUE(driver.RunToEnd());
  EXPECT_EQ(output.tokens.size(), num_tokens);
  SchedulerTestPeer::CheckIdle(driver.scheduler);
}

TEST_P(SchedulerTest, StopAtAheadEndsWhenItIsReached) {
  SchedulerDriver driver(SmallOptions(), GetParam());
  const auto request = MakeRequest(1, 5, 50);
  driver.Add(request);
  driver.StopAt(1, 0, 7);
  EXPECT_TRUE(driver.RunToEnd());
  EXPECT_EQ(driver.output(1).tokens.size(), 7u);
  EXPECT_EQ(driver.output(1).finishes[0].reason, FinishReason::kStopString);
}

TEST_P(SchedulerTest, CommandsForUnknownRequestsAreIgnored) {
  SchedulerDriver driver(SmallOptions(), GetParam());
  driver.Abort(99, absl::CancelledError());
  driver.StopAt(99, 0, 1);
  const auto request = MakeRequest(1, 5, 5);
  driver.Add(request);
  driver.StopAt(1, 1, 1);
  driver.StopAt(1, -1, 1);
  EXPECT_TRUE(driver.RunToEnd());
  ExpectReference(driver, *request);
  driver.Abort(1, absl::CancelledError());
  driver.StopAt(1, 0, 1);
  EXPECT_EQ(driver.output(1).finishes.size(), 1u);
}

TEST_P(SchedulerTest, CancelWorksWhileQueuedPrefillingAndDecoding) {
  SchedulerOptions options = SmallOptions();
  options.cache.max_num_batched_tokens = 8;
  options.cache.max_num_seqs = 2;
  SchedulerDriver driver(options, GetParam());
  driver.Add(MakeRequest(1, 4, 50));   // decodes
  driver.Add(MakeRequest(2, 40, 50));  // still in its prompt
  driver.Add(MakeRequest(3, 4, 50));   // has no slot
  driver.Step();
  driver.Step();
  for (const RequestId id : {1, 2, 3}) {
    driver.Abort(id, absl::CancelledError("gone"));
    ASSERT_TRUE(driver.output(id).ended());
    const Finish& finish = driver.output(id).finishes[0];
    EXPECT_EQ(finish.reason, FinishReason::kCancelled);
    EXPECT_EQ(finish.status, absl::CancelledError("gone"));
    EXPECT_EQ(finish.times.first_scheduled.has_value(), id != 3);
  }
  driver.Step();  // the step in flight, if there is one
  SchedulerTestPeer::CheckIdle(driver.scheduler);
}

TEST_P(SchedulerTest, StatusOfAnAbortDecidesTheReason) {
  SchedulerDriver driver(SmallOptions(), GetParam());
  driver.Add(MakeRequest(1, 4, 50));
  driver.Add(MakeRequest(2, 4, 50));
  driver.Abort(1, absl::DeadlineExceededError(""));
  driver.Abort(2, absl::ResourceExhaustedError("reader too slow"));
  EXPECT_EQ(driver.output(1).finishes[0].reason, FinishReason::kDeadline);
  EXPECT_EQ(driver.output(2).finishes[0].reason, FinishReason::kError);
}

TEST_P(SchedulerTest, DeadlinesWorkWhileQueuedPrefillingAndDecoding) {
  SchedulerOptions options = SmallOptions();
  options.cache.max_num_batched_tokens = 8;
  options.cache.max_num_seqs = 2;
  SchedulerDriver driver(options, GetParam());
  const MonotonicTime deadline = driver.now() + 3 * SchedulerDriver::kTick;
  for (const auto& [id, prompt] : {std::pair(1, 4), {2, 40}, {3, 4}}) {
    const auto request = MakeRequest(static_cast<RequestId>(id), prompt, 50);
    request->deadline = deadline;
    driver.Add(request);
  }
  EXPECT_EQ(driver.scheduler.next_deadline(), deadline);
  driver.Step();
  driver.Step();
  EXPECT_FALSE(driver.output(1).ended());
  driver.Step();
  for (const RequestId id : {1, 2, 3}) {
    ASSERT_TRUE(driver.output(id).ended());
    EXPECT_EQ(driver.output(id).finishes[0].reason, FinishReason::kDeadline);
    EXPECT_EQ(driver.output(id).finishes[0].status.code(),
              absl::StatusCode::kDeadlineExceeded);
  }
  EXPECT_EQ(driver.scheduler.next_deadline(), std::nullopt);
  driver.Step();
  SchedulerTestPeer::CheckIdle(driver.scheduler);
}

TEST_P(SchedulerTest, QueueLimitEndsOnlyWhatHasNotBegun) {
  SchedulerOptions options = SmallOptions();
  options.cache.max_num_seqs = 1;
  SchedulerDriver driver(options, GetParam());
  for (const RequestId id : {1, 2}) {
    const auto request = MakeRequest(id, 4, 30);
    request->queue_deadline = driver.now() + 5 * SchedulerDriver::kTick;
    driver.Add(request);
  }
  for (int i = 0; i < 5; ++i) driver.Step();
  ASSERT_TRUE(driver.output(2).ended());
  EXPECT_EQ(driver.output(2).finishes[0].reason, FinishReason::kDeadline);
  EXPECT_NE(driver.output(2).finishes[0].status.message().find("queue"),
            absl::string_view::npos);
  EXPECT_TRUE(driver.RunToEnd());
  EXPECT_EQ(driver.output(1).finishes[0].reason, FinishReason::kLength);
  SchedulerTestPeer::CheckIdle(driver.scheduler);
}

TEST_P(SchedulerTest, FirstTokenLimitEndsOnlyWhatHasNoToken) {
  SchedulerOptions options = SmallOptions();
  options.cache.max_num_batched_tokens = 8;
  SchedulerDriver driver(options, GetParam());
  for (const auto& [id, prompt] : {std::pair(1, 4), {2, 60}}) {
    const auto request = MakeRequest(static_cast<RequestId>(id), prompt, 30);
    request->first_token_deadline = driver.now() + 6 * SchedulerDriver::kTick;
    driver.Add(request);
  }
  for (int i = 0; i < 6; ++i) driver.Step();
  ASSERT_TRUE(driver.output(2).ended());
  EXPECT_EQ(driver.output(2).finishes[0].reason, FinishReason::kDeadline);
  EXPECT_TRUE(driver.output(2).tokens.empty());
  EXPECT_TRUE(driver.RunToEnd());
  EXPECT_EQ(driver.output(1).finishes[0].reason, FinishReason::kLength);
  SchedulerTestPeer::CheckIdle(driver.scheduler);
}

TEST_P(SchedulerTest, CancellingHalfOfSixtyFourReturnsTheirBlocksInOneStep) {
  SchedulerOptions options = SmallOptions(2000);
  options.cache.max_num_seqs = 64;
  options.cache.max_num_batched_tokens = 256;
  SchedulerDriver driver(options, GetParam());
  std::vector<std::shared_ptr<Request>> requests;
  for (RequestId id = 1; id <= 64; ++id) {
    requests.push_back(MakeRequest(id, static_cast<int>(5 + id % 13), 40));
    driver.Add(requests.back());
  }
  for (int i = 0; i < 15; ++i) driver.Step();
  ASSERT_EQ(driver.scheduler.stats().num_running, 64);

  for (RequestId id = 1; id <= 64; id += 2) {
    driver.Abort(id, absl::CancelledError());
  }
  driver.Step();
  // What is owned now is what 32 running sequences need.
  int num_needed = 0;
  for (RequestId id = 2; id <= 64; id += 2) {
    const int num_positions =
        static_cast<int>(requests[id - 1]->prompt.size() +
                         driver.output(id).tokens.size()) +
        (GetParam() == 2 ? 1 : 0);
    // The newest token is not computed yet.
    num_needed += (num_positions - 1 + 3) / 4;
  }
  const SchedulerStats& stats = driver.scheduler.stats();
  EXPECT_EQ(stats.num_running, 32);
  EXPECT_EQ(stats.num_blocks - stats.num_free_blocks, num_needed);

  EXPECT_TRUE(driver.RunToEnd());
  for (RequestId id = 2; id <= 64; id += 2) {
    ExpectReference(driver, *requests[id - 1]);
  }
  SchedulerTestPeer::CheckIdle(driver.scheduler);
}

TEST_P(SchedulerTest, PreemptedSequencesKeepTheirPlaceAndTheirTokens) {
  SchedulerOptions options = SmallOptions(12);  // 48 positions
  options.watermark = 0;
  SchedulerDriver driver(options, GetParam());
  std::vector<std::shared_ptr<Request>> requests;
  for (RequestId id = 1; id <= 5; ++id) {
    requests.push_back(MakeRequest(id, 8, 25));
    driver.Add(requests.back());
  }
  EXPECT_TRUE(driver.RunToEnd());
  std::vector<MonotonicTime> ends;
  for (const auto& request : requests) {
    ExpectReference(driver, *request);
    ends.push_back(driver.output(request->id).finishes[0].times.finished);
  }
  EXPECT_GT(driver.scheduler.stats().num_preemptions, 0);
  EXPECT_EQ(driver.output(1).finishes[0].num_preemptions, 0);
  EXPECT_TRUE(std::is_sorted(ends.begin(), ends.end()));
  SchedulerTestPeer::CheckIdle(driver.scheduler);
}

TEST_P(SchedulerTest, WatermarkSparesPreemptions) {
  const auto num_preemptions = [](double watermark) {
    SchedulerOptions options = SmallOptions(24);
    options.watermark = watermark;
    SchedulerDriver driver(options, GetParam());
    for (RequestId id = 1; id <= 12; ++id) {
      driver.Add(MakeRequest(id, 8, 25));
    }
    EXPECT_TRUE(driver.RunToEnd());
    return driver.scheduler.stats().num_preemptions;
  };
  EXPECT_LT(num_preemptions(0.3), num_preemptions(0));
}

TEST_P(SchedulerTest, NobodyIsAdmittedInAStepThatPreempts) {
  SchedulerOptions options = SmallOptions(4);
  options.cache.max_num_seqs = 2;
  options.watermark = 0;
  SchedulerDriver driver(options, GetParam());
  driver.Add(MakeRequest(1, 5, 9));
  driver.Add(MakeRequest(2, 5, 9));
  driver.Step();
  const auto urgent = MakeRequest(3, 1, 1);  // waits for a slot
  urgent->priority = -1;
  driver.Add(urgent);
  while (driver.scheduler.stats().num_preemptions == 0) driver.Step();
  for (const BatchRow& row : driver.plan().rows) {
    EXPECT_GT(row.first_position, 0);
  }
  EXPECT_TRUE(driver.RunToEnd());
  SchedulerTestPeer::CheckIdle(driver.scheduler);
}

TEST_P(SchedulerTest, SmallRequestDoesNotOvertakeALargeOne) {
  SchedulerDriver driver(SmallOptions(16), GetParam());
  driver.Add(MakeRequest(1, 20, 20));
  driver.Step();
  driver.Add(MakeRequest(2, 60, 2));  // does not fit beside the first
  driver.Add(MakeRequest(3, 1, 2));
  while (!driver.output(3).ended()) ASSERT_TRUE(driver.Step());
  EXPECT_TRUE(driver.output(1).ended());
  EXPECT_LE(driver.output(2).finishes.at(0).times.first_scheduled,
            driver.output(3).finishes.at(0).times.first_scheduled);
}

TEST_P(SchedulerTest, RequestThatCanNeverFitEndsAtOnce) {
  SchedulerDriver driver(SmallOptions(4), GetParam());  // 16 positions
  auto request = MakeRequest(1, 16, 5);
  request->num_samples = 2;
  driver.Add(request);
  for (const int sample : {0, 1}) {
    ASSERT_TRUE(driver.output(1, sample).ended());
    EXPECT_EQ(driver.output(1, sample).finishes[0].status.code(),
              absl::StatusCode::kResourceExhausted);
  }
  EXPECT_FALSE(driver.Step());
  SchedulerTestPeer::CheckIdle(driver.scheduler);
}

TEST_P(SchedulerTest, SequenceThatOutgrowsTheCacheEndsWithAllItsTokens) {
  SchedulerDriver driver(SmallOptions(4), GetParam());  // 16 positions
  const auto request = MakeRequest(1, 10, 50);
  driver.Add(request);
  EXPECT_TRUE(driver.RunToEnd());
  const SampleOutput& output = driver.output(1);
  ASSERT_TRUE(output.ended());
  EXPECT_EQ(output.finishes[0].status.code(),
            absl::StatusCode::kResourceExhausted);
  // Sixteen positions computed, and the token that follows them.
  EXPECT_EQ(output.tokens.size(), 7u);
  EXPECT_TRUE(std::equal(output.tokens.begin(), output.tokens.end(),
                         FakeReference(*request, 0).tokens.begin()));
  SchedulerTestPeer::CheckIdle(driver.scheduler);
}

TEST_P(SchedulerTest, LogitsThatAreNotFiniteEndOneSampleOnly) {
  SchedulerDriver driver(SmallOptions(), GetParam());
  const auto poisoned = MakeRequest(1, 9, 20);
  poisoned->sampling.seed = kPoisonedSeed;
  const auto healthy = MakeRequest(2, 9, 20);
  driver.Add(poisoned);
  driver.Add(healthy);
  EXPECT_TRUE(driver.RunToEnd());
  ExpectReference(driver, *poisoned);
  EXPECT_EQ(driver.output(1).finishes[0].status.code(),
            absl::StatusCode::kInternal);
  ExpectReference(driver, *healthy);
  EXPECT_EQ(driver.scheduler.stats().num_not_finite, 1);
  SchedulerTestPeer::CheckIdle(driver.scheduler);
}

TEST_P(SchedulerTest, BlocksOfBadLogitsAreNotReused) {
  SchedulerDriver driver(SmallOptions(), GetParam());
  const auto poisoned = MakeRequest(1, 9, 20);
  poisoned->sampling.seed = kPoisonedSeed;
  driver.Add(poisoned);
  EXPECT_TRUE(driver.RunToEnd());
  const auto same_prompt = MakeRequest(2, 1, 5);
  same_prompt->prompt = poisoned->prompt;
  driver.Add(same_prompt);
  EXPECT_TRUE(driver.RunToEnd());
  EXPECT_EQ(driver.output(2).finishes[0].num_cached_tokens, 0);
}

TEST_P(SchedulerTest, SamplesShareThePromptsFullBlocks) {
  SchedulerDriver driver(SmallOptions(), GetParam());
  const auto request = MakeRequest(1, 23, 6);
  request->num_samples = 4;
  request->sampling.seed = 7;
  driver.Add(request);
  EXPECT_TRUE(driver.RunToEnd());
  for (int sample = 0; sample < 4; ++sample) {
    ExpectReference(driver, *request, sample);
    EXPECT_EQ(driver.output(1, sample).finishes[0].num_cached_tokens,
              sample == 0 ? 0 : 20);
  }
  EXPECT_NE(driver.output(1, 0).tokens, driver.output(1, 1).tokens);
  EXPECT_EQ(driver.scheduler.stats().num_prompt_tokens, 23 + 3 * 3);
  EXPECT_EQ(driver.scheduler.stats().num_cache_hit_tokens, 3 * 20);
  EXPECT_EQ(driver.scheduler.stats().num_cache_query_tokens, 4 * 23);
}

TEST_P(SchedulerTest, SamplesWaitUntilOneHasComputedALongPrompt) {
  SchedulerOptions options = SmallOptions();
  options.cache.max_num_batched_tokens = 16;
  options.long_prefill_token_threshold = 8;
  SchedulerDriver driver(options, GetParam());
  const auto request = MakeRequest(1, 30, 3);
  request->num_samples = 3;
  driver.Add(request);
  const auto other = MakeRequest(2, 4, 3);
  driver.Add(other);
  driver.Step();
  EXPECT_THAT(RowSizes(driver.plan()), ElementsAre(8, 4));
  EXPECT_TRUE(driver.RunToEnd());
  for (int sample = 0; sample < 3; ++sample) {
    ExpectReference(driver, *request, sample);
  }
  ExpectReference(driver, *other);
  EXPECT_EQ(driver.scheduler.stats().num_prompt_tokens, 30 + 2 * 2 + 4);
}

// Requests of `num_common` equal tokens and then some of their own.
std::vector<std::shared_ptr<Request>> RequestsWithCommonPrefix(int num_requests,
                                                               int num_common,
                                                               int num_own) {
  std::vector<std::shared_ptr<Request>> requests;
  for (int i = 1; i <= num_requests; ++i) {
    requests.push_back(MakeRequest(static_cast<RequestId>(i), num_own, 5));
    requests.back()->prompt.insert(requests.back()->prompt.begin(),
                                   static_cast<size_t>(num_common), 7);
  }
  return requests;
}

TEST_P(SchedulerTest, CommonPrefixIsComputedOnceWhileItIsStillNotCached) {
  constexpr int kNumRequests = 100;
  constexpr int kNumCommon = 1024;
  constexpr int kNumOwn = 64;
  SchedulerOptions options = SmallOptions(3000);
  options.cache.block_size = 16;
  options.cache.max_model_len = 2048;
  options.cache.max_num_seqs = 64;
  options.cache.max_num_batched_tokens = 256;
  SchedulerDriver driver(options, GetParam());
  const auto requests =
      RequestsWithCommonPrefix(kNumRequests, kNumCommon, kNumOwn);
  for (const auto& request : requests) driver.Add(request);
  EXPECT_TRUE(driver.RunToEnd());
  for (const auto& request : requests) ExpectReference(driver, *request);
  EXPECT_EQ(driver.scheduler.stats().num_prompt_tokens,
            kNumCommon + kNumRequests * kNumOwn);
}

TEST_P(SchedulerTest, OthersPassThoseThatWaitForACommonPrefix) {
  SchedulerOptions options = SmallOptions();
  options.cache.max_num_batched_tokens = 16;
  options.long_prefill_token_threshold = 8;
  SchedulerDriver driver(options, GetParam());
  for (const auto& request : RequestsWithCommonPrefix(2, 24, 4)) {
    driver.Add(request);
  }
  const auto other = MakeRequest(9, 4, 3);
  driver.Add(other);
  driver.Step();
  EXPECT_THAT(RowSizes(driver.plan()), ElementsAre(8, 4));
  EXPECT_TRUE(driver.RunToEnd());
  ExpectReference(driver, *other);
}

TEST_P(SchedulerTest, TenantsShareNoPrefix) {
  SchedulerDriver driver(SmallOptions(), GetParam());
  for (const auto& request : RequestsWithCommonPrefix(2, 8, 1)) {
    request->tenant.push_back(request->id == 1 ? 'a' : 'b');
    driver.Add(request);
  }
  EXPECT_TRUE(driver.RunToEnd());
  EXPECT_EQ(driver.scheduler.stats().num_cache_hit_tokens, 0);
}

TEST_P(SchedulerTest, TenantWithLessServiceIsAdmittedFirst) {
  SchedulerOptions options = SmallOptions();
  options.cache.max_num_seqs = 1;
  SchedulerDriver driver(options, GetParam());
  for (const RequestId id : {1, 2, 3}) {
    const auto request = MakeRequest(id, 8, 4);
    request->tenant = "flood";
    driver.Add(request);
  }
  while (!driver.output(1).ended()) driver.Step();
  const auto late = MakeRequest(9, 8, 4);
  late->tenant = "other";
  driver.Add(late);
  EXPECT_TRUE(driver.RunToEnd());
  const auto first_scheduled = [&](RequestId id) {
    return *driver.output(id).finishes[0].times.first_scheduled;
  };
  EXPECT_LT(first_scheduled(9), first_scheduled(3));
}

// Requests 1 to 8 of one tenant, of which four run; then 11 to 13 of another.
void AddFloodAndOther(SchedulerDriver& driver, int flood_priority = 0) {
  for (RequestId id = 1; id <= 8; ++id) {
    const auto request = MakeRequest(id, 8, 40);
    request->tenant = "flood";
    request->priority = flood_priority;
    driver.Add(request);
  }
  for (int i = 0; i < 6; ++i) driver.Step();
  for (RequestId id = 11; id <= 13; ++id) {
    const auto request = MakeRequest(id, 8, 40);
    request->tenant = "other";
    driver.Add(request);
  }
}

bool Runs(SchedulerDriver& driver, RequestId id) {
  bool runs = false;
  SchedulerTestPeer::ForEachSequence(
      driver.scheduler, [&](const Sequence& seq) {
        runs |= seq.request().id == id &&
                seq.place.state == SequencePlace::State::kRunning;
      });
  return runs;
}

TEST_P(SchedulerTest, TenantThatHasMoreSlotsGivesHalfOfThemBack) {
  SchedulerOptions options = SmallOptions();
  options.cache.max_num_seqs = 4;
  SchedulerDriver driver(options, GetParam());
  AddFloodAndOther(driver);
  for (int i = 0; i < 3; ++i) driver.Step();
  for (const RequestId id : {1, 2, 11, 12}) {
    EXPECT_TRUE(Runs(driver, id)) << "request " << id;
  }
  EXPECT_EQ(driver.scheduler.stats().num_preemptions, 2);
  EXPECT_TRUE(driver.RunToEnd());
  for (const RequestId id : {1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13}) {
    ExpectReference(driver, *MakeRequest(id, 8, 40));
  }
}

TEST_P(SchedulerTest, TenantThatHasMoreBlocksGivesHalfOfThemBack) {
  SchedulerDriver driver(SmallOptions(24), GetParam());
  AddFloodAndOther(driver);
  const auto before = driver.scheduler.stats().num_preemptions;
  driver.Step();
  EXPECT_GT(driver.scheduler.stats().num_preemptions, before);
  for (int i = 0; i < 2; ++i) driver.Step();
  EXPECT_TRUE(Runs(driver, 1));
  EXPECT_TRUE(Runs(driver, 11));
  EXPECT_TRUE(driver.RunToEnd());
  for (const RequestId id : {1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13}) {
    ExpectReference(driver, *MakeRequest(id, 8, 40));
  }
}

TEST_P(SchedulerTest, MoreUrgentSequencesDoNotGiveWay) {
  SchedulerOptions options = SmallOptions();
  options.cache.max_num_seqs = 4;
  SchedulerDriver driver(options, GetParam());
  AddFloodAndOther(driver, /*flood_priority=*/-1);
  EXPECT_TRUE(driver.RunToEnd());
  EXPECT_EQ(driver.scheduler.stats().num_preemptions, 0);
}

TEST_P(SchedulerTest, SamplesComputeAloneWithoutPrefixCaching) {
  SchedulerOptions options = SmallOptions();
  options.prefix_caching = false;
  SchedulerDriver driver(options, GetParam());
  const auto request = MakeRequest(1, 23, 6);
  request->num_samples = 3;
  driver.Add(request);
  EXPECT_TRUE(driver.RunToEnd());
  for (int sample = 0; sample < 3; ++sample) {
    ExpectReference(driver, *request, sample);
  }
  EXPECT_EQ(driver.scheduler.stats().num_prompt_tokens, 3 * 23);
  EXPECT_EQ(driver.scheduler.stats().num_cache_query_tokens, 0);
}

TEST_P(SchedulerTest, SecondTurnFindsPromptAndAnswerOfTheFirst) {
  SchedulerDriver driver(SmallOptions(), GetParam());
  const auto first = MakeRequest(1, 10, 11);
  driver.Add(first);
  EXPECT_TRUE(driver.RunToEnd());
  const auto second = MakeRequest(2, 1, 5);
  second->prompt = first->prompt;
  const std::vector<TokenId>& answer = driver.output(1).tokens;
  second->prompt.insert(second->prompt.end(), answer.begin(), answer.end());
  second->prompt.push_back(3);
  driver.Add(second);
  EXPECT_TRUE(driver.RunToEnd());
  ExpectReference(driver, *second);
  // Twenty of the 21 tokens were computed; the last was only sampled.
  EXPECT_EQ(driver.output(2).finishes[0].num_cached_tokens, 20);
}

TEST_P(SchedulerTest, FlushedPrefixesAreComputedAgain) {
  SchedulerDriver driver(SmallOptions(), GetParam());
  driver.Add(MakeRequest(1, 10, 2));
  EXPECT_TRUE(driver.RunToEnd());
  driver.scheduler.FlushPrefixCache();
  const auto same_prompt = MakeRequest(2, 1, 2);
  same_prompt->prompt = MakeRequest(1, 10, 2)->prompt;
  driver.Add(same_prompt);
  EXPECT_TRUE(driver.RunToEnd());
  EXPECT_EQ(driver.output(2).finishes[0].num_cached_tokens, 0);
}

TEST_P(SchedulerTest, LogprobsTravelWithTheirTokens) {
  SchedulerOptions options = SmallOptions();
  options.cache.max_num_batched_tokens = 4;
  SchedulerDriver driver(options, GetParam());
  const auto warm = MakeRequest(1, 11, 1);  // leaves its prompt in the cache
  driver.Add(warm);
  EXPECT_TRUE(driver.RunToEnd());

  const auto request = MakeRequest(2, 1, 4);
  request->prompt = warm->prompt;
  request->num_logprobs = 2;
  request->num_prompt_logprobs = 0;
  request->num_samples = 2;
  driver.Add(request);
  EXPECT_TRUE(driver.RunToEnd());
  for (const int sample : {0, 1}) {
    ExpectReference(driver, *request, sample);
    const SampleOutput& output = driver.output(2, sample);
    for (size_t i = 0; i < output.tokens.size(); ++i) {
      EXPECT_EQ(output.logprobs[i].chosen.token, output.tokens[i]);
      EXPECT_EQ(output.logprobs[i].top.size(), 2u);
    }
  }
  EXPECT_TRUE(driver.output(2, 1).prompt_logprobs.empty());
  const auto& prompt_logprobs = driver.output(2, 0).prompt_logprobs;
  ASSERT_EQ(prompt_logprobs.size(), 10u);
  uint64_t state = 0;
  for (size_t i = 0; i < prompt_logprobs.size(); ++i) {
    state = FakeState(state, request->prompt[i]);
    const TokenId token = request->prompt[i + 1];
    EXPECT_EQ(prompt_logprobs[i].chosen.token, token);
    EXPECT_EQ(prompt_logprobs[i].chosen.logprob, FakeLogprob(state, token));
  }
}

TEST_P(SchedulerTest, StartedRequestsAreNamedOnce) {
  SchedulerOptions options = SmallOptions();
  options.cache.max_num_seqs = 1;
  SchedulerDriver driver(options, GetParam());
  const auto request = MakeRequest(1, 4, 2);
  request->num_samples = 2;
  driver.Add(request);
  driver.Add(MakeRequest(2, 4, 1));
  std::vector<RequestId> started;
  do {
    driver.Step();
    const auto now_started = driver.scheduler.started_requests();
    started.insert(started.end(), now_started.begin(), now_started.end());
  } while (!driver.scheduler.empty());
  EXPECT_THAT(started, ElementsAre(1, 2));
}

TEST_P(SchedulerTest, TimesAndCountsAreReported) {
  SchedulerOptions options = SmallOptions();
  options.cache.max_num_batched_tokens = 8;
  SchedulerDriver driver(options, GetParam());
  const auto request = MakeRequest(1, 10, 3);
  driver.Add(request);
  const MonotonicTime added = driver.now();
  EXPECT_TRUE(driver.RunToEnd());
  const Finish& finish = driver.output(1).finishes[0];
  const Duration tick = SchedulerDriver::kTick;
  const Duration lag = (GetParam() - 1) * tick;
  EXPECT_EQ(finish.times.arrival, request->arrival);
  EXPECT_EQ(finish.times.first_scheduled, added + tick);
  EXPECT_EQ(finish.times.first_token, added + 2 * tick + lag);
  EXPECT_EQ(finish.times.last_token, added + 4 * tick + lag);
  EXPECT_EQ(finish.times.finished, added + 4 * tick + lag);
  EXPECT_EQ(finish.num_prompt_tokens, 10);

  const SchedulerStats& stats = driver.scheduler.stats();
  EXPECT_EQ(stats.num_steps, 4);
  EXPECT_EQ(stats.num_prompt_tokens, 10);
  EXPECT_EQ(stats.num_generated_tokens, 3);
  EXPECT_EQ(stats.step_tokens.sum, 12);
  EXPECT_EQ(stats.step_tokens.counts[0], 2);  // one token
  EXPECT_EQ(stats.step_tokens.counts[1], 2);  // two and eight
  EXPECT_EQ(stats.compute_time, 4 * std::chrono::milliseconds(1));
}

TEST_P(SchedulerTest, OneSequenceTakesNoStepMoreThanItNeeds) {
  SchedulerDriver driver(SmallOptions(), GetParam());
  driver.Add(MakeRequest(1, 10, 20));
  EXPECT_TRUE(driver.RunToEnd());
  EXPECT_EQ(driver.scheduler.stats().num_steps, 20);
}

TEST(SchedulerOverlapTest, RunsOneStepAheadOfTheTokensItKnows) {
  SchedulerDriver driver(SmallOptions(), 2);
  driver.Add(MakeRequest(1, 3, 10));
  driver.Step();
  EXPECT_EQ(driver.plan().rows[0].token_of_step, kNoStep);
  driver.Step();
  ASSERT_EQ(driver.plan().rows.size(), 1u);
  EXPECT_EQ(driver.plan().rows[0].token_of_step, 0);
  EXPECT_EQ(driver.plan().rows[0].first_position, 3);
  EXPECT_EQ(driver.output(1).tokens.size(), 1u);
}

TEST(SchedulerOverlapTest, BlocksAndSlotAreHeldUntilTheStepInFlightIsDone) {
  SchedulerOptions options = SmallOptions(4);
  options.cache.max_num_seqs = 1;
  SchedulerDriver driver(options, 2);
  driver.Add(MakeRequest(1, 8, 8));
  driver.Step();
  driver.Step();
  driver.Abort(1, absl::CancelledError());
  EXPECT_TRUE(driver.output(1).ended());
  EXPECT_EQ(driver.scheduler.stats().num_free_blocks, 1);
  driver.Add(MakeRequest(2, 8, 8));
  driver.Step();
  EXPECT_TRUE(driver.plan().empty());
  driver.Step();
  EXPECT_EQ(driver.plan().rows.size(), 1u);
  EXPECT_TRUE(driver.RunToEnd());
}

// Requests of 7 tokens that fill the cache; the step that computes the eighth
// is in flight.
void FillTwoBlocksEach(SchedulerDriver& driver, int num_requests) {
  for (int id = 1; id <= num_requests; ++id) {
    driver.Add(MakeRequest(static_cast<RequestId>(id), 7, 6));
  }
  driver.Step();
  driver.Step();
  ASSERT_EQ(driver.scheduler.stats().num_running, num_requests);
  ASSERT_EQ(driver.scheduler.stats().num_free_blocks, 0);
}

TEST(SchedulerOverlapTest, NobodyIsPreemptedForBlocksThatAreAboutToComeBack) {
  SchedulerOptions options = SmallOptions(6);
  options.watermark = 0;
  SchedulerDriver driver(options, 2);
  FillTwoBlocksEach(driver, 3);
  driver.Abort(3, absl::CancelledError());
  driver.Step();
  EXPECT_TRUE(driver.plan().empty());
  driver.Step();
  EXPECT_EQ(driver.plan().rows.size(), 2u);
  EXPECT_EQ(driver.scheduler.stats().num_preemptions, 0);
  EXPECT_TRUE(driver.RunToEnd());
}

TEST(SchedulerOverlapTest, PreemptedSequenceMayEndBeforeItsStepIsDone) {
  SchedulerOptions options = SmallOptions(4);
  options.watermark = 0;
  SchedulerDriver driver(options, 2);
  FillTwoBlocksEach(driver, 2);
  EXPECT_TRUE(driver.scheduler.Schedule(driver.now()).empty());
  EXPECT_EQ(driver.scheduler.stats().num_preemptions, 1);
  driver.Abort(2, absl::CancelledError());
  EXPECT_TRUE(driver.RunToEnd());
  EXPECT_EQ(driver.output(1).tokens.size(), 6u);
  SchedulerTestPeer::CheckIdle(driver.scheduler);
}

TEST(SchedulerDeathTest, ResultOfAnotherStepIsABug) {
  SchedulerDriver driver(SmallOptions());
  driver.Add(MakeRequest(1, 3, 10));
  driver.scheduler.Schedule(driver.now());
  StepResult result;
  result.step = 5;
  EXPECT_DEATH(driver.scheduler.Commit(result, driver.now()), "step");
}

}  // namespace
}  // namespace binarymos
