// Random workloads against everything that must always hold. A failure prints
// the seed; BINARYMOS_SEED=<n> runs that one alone.
#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "tests/scheduler/scheduler_driver.h"
#include "tests/scheduler/scheduler_test_peer.h"

namespace binarymos {
namespace {

constexpr int kNumSeeds = 400;

class Random {
 public:
  explicit Random(uint64_t seed) : bits_(seed) {}
  // In [low, high].
  int Int(int low, int high) {
    return low +
           static_cast<int>(bits_() % static_cast<uint64_t>(high - low + 1));
  }
  bool Chance(int percent) { return Int(1, 100) <= percent; }
  template <typename T>
  T Choice(std::initializer_list<T> values) {
    return *(values.begin() + Int(0, static_cast<int>(values.size()) - 1));
  }

 private:
  std::mt19937_64 bits_;
};

SchedulerOptions RandomOptions(Random& random) {
  SchedulerOptions options;
  CacheConfig& cache = options.cache;
  cache.block_size = random.Choice({1, 4, 16});
  cache.max_model_len = random.Int(40, 160);
  // From far too few blocks to plenty.
  const int blocks_of_one = cache.max_model_len / cache.block_size;
  cache.num_blocks =
      std::max(1, blocks_of_one * random.Choice({50, 100, 200, 1000}) / 100);
  cache.max_num_seqs = random.Int(1, 9);
  cache.max_num_batched_tokens = random.Choice({1, 7, 16, 64, 512});
  options.prefix_caching = random.Chance(70);
  options.long_prefill_token_threshold = random.Choice({0, 0, 1, 5, 17});
  options.watermark = random.Choice({0.0, 0.01, 0.25});
  return options;
}

// Prompts share beginnings, tenants share nothing.
std::shared_ptr<Request> RandomRequest(Random& random, RequestId id,
                                       const CacheConfig& cache,
                                       MonotonicTime now) {
  auto request = std::make_shared<Request>();
  request->id = id;
  request->tenant = random.Choice({"", "", "a", "b"});
  request->priority = random.Choice({0, 0, 0, -1, 3});
  request->arrival = now;
  const int num_prompt = random.Int(1, cache.max_model_len - 1);
  const int family = random.Int(0, 2);
  const int num_common = random.Int(0, num_prompt);
  for (int i = 0; i < num_prompt; ++i) {
    request->prompt.push_back(i < num_common ? family * 1000 + i
                                             : random.Int(0, 5));
  }
  request->max_tokens =
      random.Int(1, std::min(40, cache.max_model_len - num_prompt));
  request->num_samples = random.Choice({1, 1, 1, 2, 5});
  request->sampling.seed =
      random.Chance(5) ? kPoisonedSeed : static_cast<uint64_t>(id);
  if (random.Chance(50)) request->eos_tokens = {random.Int(0, 96), 17};
  if (random.Chance(30)) request->stop_tokens = {random.Int(0, 96)};
  request->sampling.min_tokens = random.Choice({0, 0, 4, 12});
  request->sampling.suppressed_tokens = request->eos_tokens;
  request->sampling.suppressed_tokens.insert(
      request->sampling.suppressed_tokens.end(), request->stop_tokens.begin(),
      request->stop_tokens.end());
  if (random.Chance(20)) request->num_logprobs = random.Int(0, 3);
  if (random.Chance(20)) request->num_prompt_logprobs = 0;
  if (random.Chance(20)) {
    request->deadline = now + random.Int(0, 60) * SchedulerDriver::kTick;
  }
  return request;
}

class Workload {
 public:
  explicit Workload(uint64_t seed)
      : random_(seed),
        options_(RandomOptions(random_)),
        driver_(options_, random_.Int(1, 2)),
        num_requests_(random_.Int(1, 25)),
        arrivals_percent_(random_.Choice({5, 30, 100})),
        restless_(random_.Chance(60)) {}

  void Run() {
    constexpr int kMaxSteps = 100000;
    for (int step = 0; step < kMaxSteps; ++step) {
      while (next_id_ <= num_requests_ && random_.Chance(arrivals_percent_)) {
        Arrive();
      }
      if (restless_) Disturb();
      const bool busy = driver_.Step();
      CheckDeadlines();
      if (::testing::Test::HasFailure()) return;
      if (!busy && next_id_ > num_requests_) break;
    }
    SchedulerTestPeer::CheckIdle(driver_.scheduler);
    for (const auto& [id, request] : requests_) {
      for (int sample = 0; sample < request->num_samples; ++sample) {
        CheckOutput(*request, sample);
      }
    }
  }

  // What the seeds together must have brought about.
  struct Coverage {
    int64_t preemptions = 0;
    int64_t cached_tokens = 0;
    std::map<FinishReason, int> reasons;
    int outgrown = 0;
  };
  void AddTo(Coverage& coverage) const {
    coverage.preemptions += driver_.scheduler.stats().num_preemptions;
    coverage.cached_tokens += driver_.scheduler.stats().num_cache_hit_tokens;
    for (const auto& [key, output] : driver_.outputs()) {
      for (const Finish& finish : output.finishes) {
        ++coverage.reasons[finish.reason];
        if (finish.status.code() == absl::StatusCode::kResourceExhausted) {
          ++coverage.outgrown;
        }
      }
    }
  }

 private:
  void Arrive() {
    const auto request =
        RandomRequest(random_, static_cast<RequestId>(next_id_++),
                      options_.cache, driver_.now());
    requests_[request->id] = request;
    driver_.Add(request);
  }

  // Clients that leave, readers that find a stop string, operators that flush.
  void Disturb() {
    if (requests_.empty()) return;
    const auto id = static_cast<RequestId>(
        random_.Int(1, static_cast<int>(requests_.size())));
    if (random_.Chance(4)) {
      aborted_.insert(id);
      driver_.Abort(id, absl::CancelledError());
    }
    if (random_.Chance(6)) {
      const int sample = random_.Int(0, requests_[id]->num_samples - 1);
      const SampleOutput& output = driver_.output(id, sample);
      const int num_tokens =
          random_.Int(1, static_cast<int>(output.tokens.size()) + 3);
      if (!output.ended()) {
        auto& stop = stops_[{id, sample}];
        stop = stop == 0 ? num_tokens : std::min(stop, num_tokens);
        driver_.StopAt(id, sample, num_tokens);
      }
    }
    if (random_.Chance(1)) driver_.scheduler.FlushPrefixCache();
    SchedulerTestPeer::CheckInvariants(driver_.scheduler);
  }

  void CheckDeadlines() {
    for (const auto& [id, request] : requests_) {
      if (!request->deadline || *request->deadline > driver_.now()) continue;
      for (int sample = 0; sample < request->num_samples; ++sample) {
        EXPECT_TRUE(driver_.output(id, sample).ended())
            << "request " << id << " lives past its deadline";
      }
    }
  }

  void CheckOutput(const Request& request, int sample) {
    SCOPED_TRACE("request " + std::to_string(request.id) + " sample " +
                 std::to_string(sample));
    const SampleOutput& output = driver_.output(request.id, sample);
    ASSERT_EQ(output.finishes.size(), 1u);
    const Finish& finish = output.finishes[0];
    const ReferenceOutput reference = FakeReference(request, sample);
    const int num_tokens = static_cast<int>(output.tokens.size());
    ASSERT_LE(output.tokens.size(), reference.tokens.size());
    EXPECT_TRUE(std::equal(output.tokens.begin(), output.tokens.end(),
                           reference.tokens.begin()));
    CheckLogprobs(request, sample, output);
    // Of the first run: a later one may find its own output too.
    EXPECT_LT(finish.num_cached_tokens, std::ssize(request.prompt));
    const bool whole = output.tokens.size() == reference.tokens.size();
    if (finish.reason != FinishReason::kStopString) {
      EXPECT_EQ(finish.num_output_tokens, num_tokens);
    }
    switch (finish.reason) {
      case FinishReason::kEos:
      case FinishReason::kStopToken:
        EXPECT_EQ(finish.matched_token, output.tokens.back());
        [[fallthrough]];
      case FinishReason::kLength:
        EXPECT_EQ(finish.reason, reference.reason);
        EXPECT_TRUE(whole);
        break;
      case FinishReason::kStopString:
        ASSERT_TRUE(stops_.contains({request.id, sample}));
        EXPECT_EQ(finish.num_output_tokens, (stops_[{request.id, sample}]));
        EXPECT_GE(num_tokens, finish.num_output_tokens);
        break;
      case FinishReason::kCancelled:
        EXPECT_TRUE(aborted_.contains(request.id));
        break;
      case FinishReason::kDeadline:
        ASSERT_TRUE(request.deadline.has_value());
        EXPECT_LE(*request.deadline, finish.times.finished);
        break;
      case FinishReason::kError:
        CheckError(request, finish, whole, reference);
        break;
    }
  }

  void CheckError(const Request& request, const Finish& finish, bool whole,
                  const ReferenceOutput& reference) {
    if (finish.status.code() == absl::StatusCode::kInternal) {
      EXPECT_EQ(reference.reason, FinishReason::kError);
      EXPECT_TRUE(whole);
      return;
    }
    EXPECT_EQ(finish.status.code(), absl::StatusCode::kResourceExhausted);
    const CacheConfig& cache = options_.cache;
    EXPECT_GT(static_cast<int>(request.prompt.size()) +
                  std::max(1, finish.num_output_tokens),
              cache.num_blocks * cache.block_size);
  }

  void CheckLogprobs(const Request& request, int sample,
                     const SampleOutput& output) {
    for (size_t i = 0; i < output.tokens.size(); ++i) {
      if (request.num_logprobs < 0) break;
      EXPECT_EQ(output.logprobs[i].chosen.token, output.tokens[i]);
    }
    if (output.tokens.empty() || request.num_prompt_logprobs < 0 ||
        sample > 0) {
      EXPECT_TRUE(output.prompt_logprobs.empty());
      return;
    }
    ASSERT_EQ(output.prompt_logprobs.size(), request.prompt.size() - 1);
    uint64_t state = 0;
    for (size_t i = 0; i < output.prompt_logprobs.size(); ++i) {
      state = FakeState(state, request.prompt[i]);
      const TokenId token = request.prompt[i + 1];
      const TokenLogprob& chosen = output.prompt_logprobs[i].chosen;
      EXPECT_EQ(chosen.token, token);
      EXPECT_EQ(chosen.logprob, FakeLogprob(state, token));
    }
  }

  Random random_;
  const SchedulerOptions options_;
  SchedulerDriver driver_;
  const int num_requests_;
  const int arrivals_percent_;
  const bool restless_;
  int next_id_ = 1;
  std::map<RequestId, std::shared_ptr<Request>> requests_;
  std::set<RequestId> aborted_;
  std::map<std::pair<RequestId, int>, int> stops_;
};

TEST(SchedulerPropertyTest, HoldsForRandomWorkloads) {
  const char* only = std::getenv("BINARYMOS_SEED");
  const char* count = std::getenv("BINARYMOS_SEEDS");
  const uint64_t first = only != nullptr ? std::stoull(only) : 0;
  const uint64_t last =
      only != nullptr ? first
                      : (count != nullptr ? std::stoull(count) : kNumSeeds) - 1;
  Workload::Coverage coverage;
  for (uint64_t seed = first; seed <= last; ++seed) {
    SCOPED_TRACE("BINARYMOS_SEED=" + std::to_string(seed));
    Workload workload(seed);
    workload.Run();
    ASSERT_FALSE(HasFailure()) << "BINARYMOS_SEED=" << seed;
    workload.AddTo(coverage);
  }
  if (only != nullptr) return;
  EXPECT_GT(coverage.preemptions, 100);
  EXPECT_GT(coverage.cached_tokens, 1000);
  EXPECT_GT(coverage.outgrown, 10);
  EXPECT_EQ(coverage.reasons.size(), 7u) << "a way to end was never seen";
}

}  // namespace
}  // namespace binarymos
