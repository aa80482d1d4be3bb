// The engine and the serving loop together: whatever the scheduler does, every
// request gets, bit for bit, what it would get alone.
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine/async_runner.h"
#include "engine/engine.h"
#include "engine/llama_runner.h"
#include "gtest/gtest.h"
#include "scheduler/serving_loop.h"
#include "tests/engine/faulty_backend.h"
#include "tests/engine/test_model.h"

namespace binarymos {
namespace {

constexpr MonotonicTime kNow{std::chrono::seconds(1000)};
constexpr int kMaxModelLen = 128;

SyntheticShape TinyShape() {
  SyntheticShape shape = SmallShape();
  shape.hidden_size = 64;
  shape.intermediate_size = 96;
  return shape;
}

// What came of one (request, sample).
struct Answer {
  std::vector<TokenId> tokens;
  // Of every token and of the five most likely: they depend on all logits.
  std::vector<PositionLogprobs> logprobs;
  std::vector<PositionLogprobs> prompt_logprobs;
  std::optional<Finish> finish;
};
using Answers = std::map<std::pair<RequestId, int>, Answer>;

::testing::AssertionResult SameBits(const std::vector<PositionLogprobs>& a,
                                    const std::vector<PositionLogprobs>& b,
                                    size_t count) {
  const auto same = [](const TokenLogprob& x, const TokenLogprob& y) {
    return x.token == y.token &&
           std::memcmp(&x.logprob, &y.logprob, sizeof(float)) == 0;
  };
  for (size_t i = 0; i < count; ++i) {
    if (!same(a[i].chosen, b[i].chosen) || a[i].top.size() != b[i].top.size() ||
        !std::equal(a[i].top.begin(), a[i].top.end(), b[i].top.begin(), same)) {
      return ::testing::AssertionFailure() << "position " << i << " differs";
    }
  }
  return ::testing::AssertionSuccess();
}

// Greedy and seeded requests, with and without penalties; most prompts begin
// alike; some ask for several samples, or for the prompt's log-probabilities.
std::vector<Request> MakeRequests(int vocab_size) {
  std::mt19937 random(11);
  const auto token = [&] {
    return static_cast<TokenId>(3 + random() % (vocab_size - 3));
  };
  std::vector<TokenId> common(40);
  for (TokenId& each : common) each = token();
  std::vector<Request> requests(10);
  for (size_t i = 0; i < requests.size(); ++i) {
    Request& request = requests[i];
    request.id = i + 1;
    request.arrival = kNow + std::chrono::milliseconds(i);
    if (i % 4 != 3) request.prompt = common;
    for (size_t k = 0; k < 5 + 3 * i; ++k) request.prompt.push_back(token());
    request.max_tokens = 20 + static_cast<int>(3 * i);
    request.num_samples = i % 5 == 2 ? 3 : 1;
    request.num_logprobs = 5;
    if (i == 4) request.num_prompt_logprobs = 2;
    request.sampling.seed = 100 + i;
    if (i % 2 == 0) request.sampling.temperature = 0;
    if (i % 3 == 0) request.sampling.repetition_penalty = 1.3f;
    if (i % 4 == 1) request.sampling.top_p = 0.9f;
  }
  return requests;
}

// What readers do: by (request, sample), and number of tokens seen.
struct Disturbances {
  std::map<std::pair<RequestId, int>, int> stops;  // after as many tokens
  std::map<RequestId, int> leaves;                 // with as many of sample 0
};

// Runs the loop on this thread until every request has ended.
Answers Serve(ServingLoop& loop, const std::vector<Request>& requests,
              const Disturbances& disturbances = {}) {
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (const Request& asked : requests) {
    auto request = std::make_shared<Request>(asked);
    request->stream = std::make_shared<TokenStream>(nullptr);
    streams.push_back(request->stream);
    auto place =
        loop.queue().TryReserve({.num_tokens = std::ssize(request->prompt)});
    EXPECT_TRUE(place.ok()) << place.status();
    loop.queue().Push(SubmitCommand{request, *std::move(place)});
  }
  Answers answers;
  std::vector<TokenEvent> events;
  Disturbances left = disturbances;
  bool busy = true;
  while (busy) {
    busy = loop.Step(kNow);
    for (size_t i = 0; i < requests.size(); ++i) {
      streams[i]->Drain(events);
      for (TokenEvent& event : events) {
        Answer& answer = answers[{requests[i].id, event.sample}];
        if (event.token != kNoToken) {
          if (answer.tokens.empty()) {
            answer.prompt_logprobs = event.prompt_logprobs;
          }
          answer.tokens.push_back(event.token);
          answer.logprobs.push_back(event.logprobs);
        }
        if (event.finish) answer.finish = event.finish;
        const auto num_tokens = std::ssize(answer.tokens);
        const auto stop = left.stops.find({requests[i].id, event.sample});
        if (stop != left.stops.end() && num_tokens == stop->second) {
          loop.queue().Push(
              StopAtCommand{requests[i].id, event.sample, stop->second});
        }
        const auto leave = left.leaves.find(requests[i].id);
        if (leave != left.leaves.end() && event.sample == 0 &&
            num_tokens == leave->second) {
          loop.queue().Push(
              AbortCommand{requests[i].id, absl::CancelledError("left")});
        }
      }
      events.clear();
    }
  }
  return answers;
}

struct Variant {
  std::string name;
  bool prefix_caching = true;
  int max_num_batched_tokens = 256;
  int num_blocks = 0;  // 0: as many as may be needed
  bool overlap = false;
  int num_threads = 2;
};

class AnswersTest : public ::testing::Test {
 protected:
  std::unique_ptr<Engine> Load(const Variant& variant) {
    EngineOptions options;
    options.model_dir = dir_.path();
    options.device = "cpu";
    options.num_threads = variant.num_threads;
    options.max_num_seqs = 6;
    options.max_model_len = kMaxModelLen;
    options.max_num_batched_tokens = variant.max_num_batched_tokens;
    options.kv_cache_memory = int64_t{variant.num_blocks} * kBlockSize * 256;
    options.overlap = variant.overlap ? "on" : "off";
    auto engine = Engine::Load(options);
    EXPECT_TRUE(engine.ok()) << engine.status();
    if (variant.num_blocks > 0) {
      EXPECT_EQ((*engine)->cache_config().num_blocks, variant.num_blocks);
    }
    EXPECT_EQ((*engine)->runner().max_steps_in_flight(),
              variant.overlap ? 2 : 1);
    return *std::move(engine);
  }

  Answers Run(const Variant& variant, const Disturbances& disturbances = {}) {
    const std::unique_ptr<Engine> engine = Load(variant);
    ServingLoop loop(engine->runner(),
                     {.cache = engine->cache_config(),
                      .prefix_caching = variant.prefix_caching},
                     QueueLimits{});
    Answers answers =
        Serve(loop, MakeRequests(engine->info().vocab_size), disturbances);
    stats_ = loop.status().stats();
    return answers;
  }

  // Each request by itself, in whole prompts.
  Answers Alone() {
    const std::unique_ptr<Engine> engine = Load({.num_threads = 1});
    Answers answers;
    for (const Request& request : MakeRequests(engine->info().vocab_size)) {
      ServingLoop loop(
          engine->runner(),
          {.cache = engine->cache_config(), .prefix_caching = false},
          QueueLimits{});
      answers.merge(Serve(loop, {request}));
    }
    return answers;
  }

  const TestModelDir dir_{TinyShape(), 3};
  SchedulerStats stats_;
};

void ExpectSame(const Answers& answers, const Answers& expected) {
  ASSERT_EQ(answers.size(), expected.size());
  for (const auto& [key, answer] : answers) {
    SCOPED_TRACE("request " + std::to_string(key.first) + " sample " +
                 std::to_string(key.second));
    const Answer& other = expected.at(key);
    ASSERT_TRUE(answer.finish.has_value());
    EXPECT_TRUE(answer.finish->status.ok()) << answer.finish->status;
    EXPECT_EQ(answer.finish->reason, other.finish->reason);
    ASSERT_EQ(answer.tokens, other.tokens);
    EXPECT_TRUE(
        SameBits(answer.logprobs, other.logprobs, other.logprobs.size()));
    ASSERT_EQ(answer.prompt_logprobs.size(), other.prompt_logprobs.size());
    EXPECT_TRUE(SameBits(answer.prompt_logprobs, other.prompt_logprobs,
                         other.prompt_logprobs.size()));
  }
}

TEST_F(AnswersTest, AreTheSameWhateverTheSchedulerDoes) {
  const Answers alone = Alone();
  for (const bool overlap : {false, true}) {
    for (Variant variant : {
             Variant{.name = "together"},
             Variant{.name = "no cache", .prefix_caching = false},
             Variant{.name = "tiny chunks", .max_num_batched_tokens = 7},
             Variant{.name = "chunks of two blocks",
             .prefix_caching = false,
             .max_num_batched_tokens = 32},
             Variant{.name = "few blocks", .num_blocks = 14},
             Variant{.name = "few blocks, no cache, tiny chunks",
             .prefix_caching = false,
             .max_num_batched_tokens = 13,
             .num_blocks = 14},
             Variant{.name = "one thread", .num_threads = 1},
         }) {
      variant.overlap = overlap;
      SCOPED_TRACE(variant.name + (overlap ? ", overlapped" : ""));
      ExpectSame(Run(variant), alone);
      EXPECT_EQ(stats_.num_cache_hit_tokens > 0, variant.prefix_caching);
      EXPECT_EQ(stats_.num_preemptions > 0, variant.num_blocks > 0);
    }
  }
}

TEST_F(AnswersTest, OneSampleOfSeveralIsWhatItWouldBeAlone) {
  const std::unique_ptr<Engine> engine = Load({.overlap = true});
  const auto first_of = [&](int num_samples) {
    Request request = MakeRequests(engine->info().vocab_size)[1];
    request.num_samples = num_samples;
    ServingLoop loop(engine->runner(), {.cache = engine->cache_config()},
                     QueueLimits{});
    const Answers answers = Serve(loop, {request});
    EXPECT_EQ(answers.size(), static_cast<size_t>(num_samples));
    return answers.at({request.id, 0});
  };
  const Answer one = first_of(1);
  const Answer of_four = first_of(4);
  EXPECT_EQ(one.tokens, of_four.tokens);
  EXPECT_TRUE(SameBits(one.logprobs, of_four.logprobs, one.logprobs.size()));
}

TEST_F(AnswersTest, StopsAndCancelsLeaveWhatCameBeforeAndTheOthers) {
  const Answers alone = Alone();
  const Disturbances disturbances = {
      .stops = {{{1, 0}, 5}, {{3, 0}, 1}, {{3, 2}, 9}},
      .leaves = {{4, 3}, {9, 1}}};
  for (const bool overlap : {false, true}) {
    SCOPED_TRACE(overlap ? "overlapped" : "");
    Answers answers = Run({.num_blocks = 20, .overlap = overlap}, disturbances);
    for (const auto& [key, stop] : disturbances.stops) {
      const Answer answer = std::exchange(answers[key], alone.at(key));
      ASSERT_TRUE(answer.finish.has_value());
      EXPECT_EQ(answer.finish->reason, FinishReason::kStopString);
      EXPECT_EQ(answer.finish->num_output_tokens, stop);
      const Answer& whole = alone.at(key);
      ASSERT_LT(answer.tokens.size(), whole.tokens.size());
      EXPECT_TRUE(std::equal(answer.tokens.begin(), answer.tokens.end(),
                             whole.tokens.begin()));
      EXPECT_TRUE(
          SameBits(answer.logprobs, whole.logprobs, answer.logprobs.size()));
    }
    for (const auto& [id, num_tokens] : disturbances.leaves) {
      Answer& answer = answers[{id, 0}];
      ASSERT_TRUE(answer.finish.has_value());
      EXPECT_EQ(answer.finish->reason, FinishReason::kCancelled);
      EXPECT_GE(std::ssize(answer.tokens), num_tokens);
      const Answer& whole = alone.at({id, 0});
      EXPECT_TRUE(std::equal(answer.tokens.begin(), answer.tokens.end(),
                             whole.tokens.begin()));
      answer = whole;
    }
    ExpectSame(answers, alone);
  }
}

class FaultTest : public ::testing::TestWithParam<bool> {
 protected:
  FaultTest() {
    TestModelOptions options;
    options.shape = TinyShape();
    options.max_model_len = kMaxModelLen;
    options.num_blocks = 64;
    options.wrap = [this](std::unique_ptr<Backend> inner) {
      auto faulty = std::make_unique<FaultyBackend>(std::move(inner));
      backend_ = faulty.get();
      return faulty;
    };
    model_ = *TestModel::Load(options);
  }

  // Of a machine that is told a `poison` token and `fails_after`.
  Answers Run(const std::vector<Request>& requests, TokenId poison,
              int fails_after) {
    backend_->poisoned_token = poison;
    backend_->fails_after = fails_after;
    std::unique_ptr<ModelRunner> runner = std::make_unique<LlamaRunner>(
        *backend_, model_->model(), model_->kv_cache(),
        LlamaRunnerOptions{.max_num_seqs = 6});
    if (GetParam()) runner = std::make_unique<AsyncRunner>(std::move(runner));
    SchedulerOptions options;
    options.cache = {.num_blocks = 64,
                     .max_num_seqs = 6,
                     .max_model_len = kMaxModelLen,
                     .max_num_batched_tokens = 64};
    ServingLoop loop(*runner, options, QueueLimits{});
    Answers answers = Serve(loop, requests);
    status_ = loop.status().status();
    return answers;
  }

  FaultyBackend* backend_ = nullptr;
  std::unique_ptr<TestModel> model_;
  absl::Status status_;
};
INSTANTIATE_TEST_SUITE_P(, FaultTest, ::testing::Bool(),
                         [](const auto& instance) {
                           return std::string(instance.param ? "Overlapped"
                                                             : "OneByOne");
                         });

TEST_P(FaultTest, BadLogitsEndOneSampleAndChangeNoOther) {
  const std::vector<Request> requests = MakeRequests(model_->vocab_size());
  const Answers healthy = Run(requests, kNoToken, -1);
  // A token that one sample generates, and no prompt has.
  const std::pair<RequestId, int> sick = {2, 0};
  const TokenId poison = healthy.at(sick).tokens[6];
  const Answers answers = Run(requests, poison, -1);
  EXPECT_TRUE(status_.ok()) << status_;
  int num_sick = 0;
  for (const auto& [key, answer] : answers) {
    SCOPED_TRACE("request " + std::to_string(key.first) + " sample " +
                 std::to_string(key.second));
    const Answer& whole = healthy.at(key);
    const auto found =
        std::find(whole.tokens.begin(), whole.tokens.end(), poison);
    const auto& prompt = requests[key.first - 1].prompt;
    const bool in_prompt =
        std::find(prompt.begin(), prompt.end(), poison) != prompt.end();
    // The last token is not computed, so it does no harm.
    const bool harmless =
        !in_prompt &&
        (found == whole.tokens.end() || std::next(found) == whole.tokens.end());
    ASSERT_TRUE(answer.finish.has_value());
    if (harmless) {
      EXPECT_EQ(answer.tokens, whole.tokens);
      EXPECT_TRUE(
          SameBits(answer.logprobs, whole.logprobs, whole.logprobs.size()));
      continue;
    }
    ++num_sick;
    EXPECT_EQ(answer.finish->status.code(), absl::StatusCode::kInternal);
    if (in_prompt) {
      EXPECT_TRUE(answer.tokens.empty());
    } else {
      EXPECT_EQ(answer.tokens,
                std::vector<TokenId>(whole.tokens.begin(), std::next(found)));
    }
  }
  EXPECT_GE(num_sick, 1);
  EXPECT_LT(num_sick, std::ssize(answers));
}

TEST_P(FaultTest, DeviceThatFailsEndsEveryRequestWithWhatItHad) {
  const std::vector<Request> requests = MakeRequests(model_->vocab_size());
  const Answers healthy = Run(requests, kNoToken, -1);
  const Answers answers = Run(requests, kNoToken, 12);
  EXPECT_EQ(status_.message(), "the device is gone");
  EXPECT_EQ(answers.size(), healthy.size());
  for (const auto& [key, answer] : answers) {
    const Answer& whole = healthy.at(key);
    ASSERT_TRUE(answer.finish.has_value());
    ASSERT_LE(answer.tokens.size(), whole.tokens.size());
    EXPECT_TRUE(std::equal(answer.tokens.begin(), answer.tokens.end(),
                           whole.tokens.begin()));
    if (answer.tokens.size() < whole.tokens.size()) {
      EXPECT_EQ(answer.finish->status.message(), "the device is gone");
    }
  }
}

}  // namespace
}  // namespace binarymos
