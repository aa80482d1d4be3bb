#include "engine/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "engine/core/philox.h"

namespace binarymos {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<float> RandomLogits(int vocab, uint32_t seed, float spread = 3.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> logits(vocab);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

// The distribution that SamplingParams describes, in double and by sorting
// everything. [vocab], sums to 1.
std::vector<double> ObviousDistribution(const std::vector<float>& logits,
                                        const SamplingParams& params) {
  std::vector<int> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return logits[a] > logits[b]; });
  if (params.top_k > 0 && params.top_k < static_cast<int>(order.size())) {
    order.resize(params.top_k);
  }
  std::vector<double> weights;
  double mass = 0.0;
  for (int token : order) {
    weights.push_back(
        std::exp((static_cast<double>(logits[token]) - logits[order[0]]) /
                 params.temperature));
    mass += weights.back();
  }
  size_t count = 0;
  double kept = 0.0;
  while (count < order.size() &&
         (params.top_p == 1.0f || kept < params.top_p * mass)) {
    kept += weights[count++];
  }
  while (weights[count - 1] < params.min_p) kept -= weights[--count];
  std::vector<double> distribution(logits.size());
  for (size_t i = 0; i < count; ++i) {
    distribution[order[i]] = weights[i] / kept;
  }
  return distribution;
}

// A sampler with one sequence in slot 0.
class SamplerTest : public ::testing::Test {
 protected:
  void Add(const SamplingParams& params, std::vector<TokenId> prompt = {},
           std::vector<TokenId> output = {}, uint32_t sample_index = 0) {
    if (added_) sampler_->RemoveSequence(0);
    added_ = true;
    sampler_->AddSequence(0, {&params, sample_index, prompt, output});
  }
  void SetVocab(int vocab) {
    sampler_ = std::make_unique<Sampler>(vocab, 2);
    added_ = false;
  }
  TokenId Sample(const std::vector<float>& logits, int position = 0) {
    Run({.position = position, .logits = logits});
    return result_.token;
  }
  void Run(SamplerRow row) { sampler_->Sample(row, scratch_, result_); }

  // Compares kDraws tokens with the obvious distribution: nothing outside its
  // support, and Pearson's statistic over the likelier tokens below a value
  // that a right sampler passes in all but one of a million fixed seeds.
  void ExpectDistribution(const std::vector<float>& logits,
                          const SamplingParams& params) {
    constexpr int kDraws = 4000;
    SetVocab(static_cast<int>(logits.size()));
    Add(params);
    const std::vector<double> expected = ObviousDistribution(logits, params);
    std::vector<int> counts(logits.size());
    for (int i = 0; i < kDraws; ++i) ++counts[Sample(logits, i)];
    double statistic = 0.0;
    int degrees = 0;
    double rest_expected = 0.0;
    double rest_counted = 0.0;
    for (size_t i = 0; i < counts.size(); ++i) {
      if (expected[i] == 0.0) {
        EXPECT_EQ(counts[i], 0) << "token " << i;
      }
      if (expected[i] * kDraws < 10.0) {
        rest_expected += expected[i] * kDraws;
        rest_counted += counts[i];
        continue;
      }
      const double difference = counts[i] - expected[i] * kDraws;
      statistic += difference * difference / (expected[i] * kDraws);
      ++degrees;
    }
    if (rest_expected > 0.0) {
      const double difference = rest_counted - rest_expected;
      statistic += difference * difference / std::max(1.0, rest_expected);
    }
    // Mean d, variance 2 d; five deviations and some.
    EXPECT_LT(statistic, degrees + 6.0 * std::sqrt(2.0 * degrees) + 12.0);
  }

  std::unique_ptr<Sampler> sampler_ = std::make_unique<Sampler>(4, 2);
  SamplerScratch scratch_;
  StepResultRow result_;
  bool added_ = false;
};

TEST(PhiloxTest, MatchesThePublishedVectors) {
  EXPECT_THAT(Philox4x32({0, 0, 0, 0}, {0, 0}),
              ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  EXPECT_THAT(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
                         {0xa4093822, 0x299f31d0}),
              ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST(PhiloxTest, WordsAreUniformAndDifferBySeedSampleAndPosition) {
  double sum = 0.0;
  for (uint32_t position = 0; position < 10000; ++position) {
    sum += static_cast<double>(PhiloxWord(7, 0, position)) * 0x1p-64;
  }
  EXPECT_NEAR(sum / 10000, 0.5, 0.015);
  EXPECT_NE(PhiloxWord(7, 0, 1), PhiloxWord(7, 0, 2));
  EXPECT_NE(PhiloxWord(7, 0, 1), PhiloxWord(7, 1, 1));
  EXPECT_NE(PhiloxWord(7, 0, 1), PhiloxWord(8, 0, 1));
  EXPECT_NE(PhiloxWord(7, 0, 1), PhiloxWord(7 + (1ull << 32), 0, 1));
}

TEST(PhiloxTest, TheUpperHalfOfAProductIsExact) {
  constexpr uint64_t kMax = ~uint64_t{0};
  EXPECT_EQ(MultiplyHigh(kMax, kMax), kMax - 1);
  EXPECT_EQ(MultiplyHigh(kMax, 5), 4u);
  EXPECT_EQ(MultiplyHigh(0, kMax), 0u);
  EXPECT_EQ(MultiplyHigh(1, kMax), 0u);
  std::mt19937_64 random(1);
  for (int i = 0; i < 1000; ++i) {
    const uint64_t a = random();
    const uint64_t b = random() >> (i % 64);
    __extension__ using Wide = unsigned __int128;
    ASSERT_EQ(MultiplyHigh(a, b), static_cast<uint64_t>(Wide{a} * b >> 64));
  }
}

TEST_F(SamplerTest, GreedyTakesTheSmallestIdOfTheLargest) {
  SamplingParams greedy;
  greedy.temperature = 0.0f;
  SetVocab(40);
  Add(greedy);
  std::vector<float> logits(40, -1.0f);
  logits[33] = logits[17] = logits[39] = 2.5f;
  EXPECT_EQ(Sample(logits), 17);
  logits.assign(40, -0.0f);
  logits[3] = 0.0f;
  EXPECT_EQ(Sample(logits), 0);
}

TEST_F(SamplerTest, DrawsFromTheWholeDistribution) {
  ExpectDistribution(RandomLogits(300, 1), {.seed = 3});
  ExpectDistribution(RandomLogits(1000, 2), {.seed = 4});
}

TEST_F(SamplerTest, TemperatureSharpensAndFlattens) {
  ExpectDistribution(RandomLogits(300, 1), {.temperature = 0.3f, .seed = 3});
  ExpectDistribution(RandomLogits(300, 1), {.temperature = 3.0f, .seed = 3});
}

TEST_F(SamplerTest, TheSmallestTemperatureIsGreedy) {
  SamplingParams params;
  params.temperature = std::numeric_limits<float>::denorm_min();
  const std::vector<float> logits = {1.0f, 3.0f, 2.999f, -4.0f};
  Add(params);
  for (int position = 0; position < 50; ++position) {
    EXPECT_EQ(Sample(logits, position), 1);
  }
}

TEST_F(SamplerTest, TopKKeepsTheLikeliest) {
  for (int k : {1, 2, 5, 40, 299, 300, 1000}) {
    SCOPED_TRACE(k);
    ExpectDistribution(RandomLogits(300, 1), {.top_k = k, .seed = 5});
  }
}

TEST_F(SamplerTest, TopKBreaksTiesByTheSmallerId) {
  SetVocab(500);
  Add({.top_k = 3});
  std::vector<float> logits(500, 1.0f);
  logits[300] = 2.0f;
  std::set<TokenId> drawn;
  for (int i = 0; i < 300; ++i) drawn.insert(Sample(logits, i));
  EXPECT_THAT(drawn, ElementsAre(0, 1, 300));
}

TEST_F(SamplerTest, TopPKeepsTheSmallestSetThatReachesIt) {
  for (float p : {1e-6f, 0.1f, 0.5f, 0.9f, 0.99f, 0.999999f}) {
    SCOPED_TRACE(p);
    ExpectDistribution(RandomLogits(300, 1), {.top_p = p, .seed = 6});
    // So flat that hundreds of tokens are needed: several sorted parts.
    ExpectDistribution(RandomLogits(600, 1, 0.1f), {.top_p = p, .seed = 6});
  }
}

TEST_F(SamplerTest, MinPIsRelativeToTheLikeliest) {
  for (float p : {0.001f, 0.1f, 0.9f, 1.0f}) {
    SCOPED_TRACE(p);
    ExpectDistribution(RandomLogits(300, 1), {.min_p = p, .seed = 7});
  }
}

TEST_F(SamplerTest, RestrictionsCombineInOrder) {
  ExpectDistribution(
      RandomLogits(300, 1),
      {.temperature = 2.0f, .top_k = 20, .top_p = 0.8f, .seed = 8});
  ExpectDistribution(
      RandomLogits(300, 1),
      {.temperature = 2.0f, .top_k = 20, .min_p = 0.2f, .seed = 8});
  ExpectDistribution(
      RandomLogits(300, 1),
      {.temperature = 2.0f, .top_p = 0.8f, .min_p = 0.2f, .seed = 8});
  ExpectDistribution(RandomLogits(300, 1), {.temperature = 2.0f,
                                            .top_k = 20,
                                            .top_p = 0.7f,
                                            .min_p = 0.3f,
                                            .seed = 8});
}

TEST_F(SamplerTest, ATokenIsAFunctionOfSeedSampleAndPosition) {
  const std::vector<float> logits = RandomLogits(100, 9);
  SetVocab(100);
  const auto draw = [&](uint64_t seed, uint32_t sample) {
    Add({.seed = seed}, {}, {}, sample);
    std::vector<TokenId> tokens;
    for (int i = 0; i < 30; ++i) tokens.push_back(Sample(logits, i));
    return tokens;
  };
  const std::vector<TokenId> first = draw(1, 0);
  EXPECT_EQ(draw(1, 0), first);
  EXPECT_NE(draw(2, 0), first);
  EXPECT_NE(draw(1, 1), first);
  Add({.seed = 1});
  EXPECT_EQ(Sample(logits, 17), first[17]);
}

TEST_F(SamplerTest, PenaltiesMatchTheObviousVersion) {
  constexpr int kVocab = 60;
  SetVocab(kVocab);
  std::mt19937 random(11);
  const std::vector<TokenId> prompt = {1, 2, 3, 3, 10, 11};
  std::vector<TokenId> output = {3, 10, 20, 20};
  SamplingParams params;
  params.temperature = 0.0f;
  params.repetition_penalty = 1.3f;
  params.presence_penalty = 0.4f;
  params.frequency_penalty = 0.25f;
  Add(params, prompt, output);
  for (int step = 0; step < 200; ++step) {
    const std::vector<float> logits = RandomLogits(kVocab, random(), 1.0f);
    std::vector<float> expected = logits;
    for (TokenId token = 0; token < kVocab; ++token) {
      const auto in_output = std::count(output.begin(), output.end(), token);
      const auto in_prompt = std::count(prompt.begin(), prompt.end(), token);
      if (in_output + in_prompt == 0) continue;
      float& logit = expected[token];
      logit = logit > 0 ? logit / 1.3f : logit * 1.3f;
      logit -= 0.25f * static_cast<float>(in_output);
      if (in_output > 0) logit -= 0.4f;
    }
    const auto best = std::max_element(expected.begin(), expected.end());
    ASSERT_EQ(Sample(logits, step), best - expected.begin()) << step;
    output.push_back(result_.token);
  }
}

TEST_F(SamplerTest, ASlotForgetsItsHistoryWithItsSequence) {
  SamplingParams params;
  params.temperature = 0.0f;
  params.presence_penalty = 10.0f;
  const std::vector<float> logits = {3.0f, 2.0f, 1.0f, 0.0f};
  Add(params);
  EXPECT_EQ(Sample(logits), 0);
  EXPECT_EQ(Sample(logits), 1);
  Add(params);
  EXPECT_EQ(Sample(logits), 0);
  // After a preemption the history comes with the sequence.
  Add(params, {}, {0, 1});
  EXPECT_EQ(Sample(logits), 2);
}

TEST_F(SamplerTest, ExtremePenaltiesStayFinite) {
  SamplingParams params;
  params.repetition_penalty = 1e-38f;
  params.presence_penalty = -2.0f;
  Add(params, {0, 1});
  const std::vector<float> logits = {1e38f, -1.0f, 0.0f, 1.0f};
  EXPECT_EQ(Sample(logits), 0);
  EXPECT_FALSE(result_.not_finite);
}

TEST_F(SamplerTest, StopTokensWaitForMinTokens) {
  SamplingParams params;
  params.temperature = 0.0f;
  params.min_tokens = 3;
  params.suppressed_tokens = {0, 2, 9999};
  const std::vector<float> logits = {3.0f, 1.0f, 2.0f, 0.0f};
  Add(params, {}, {1});
  EXPECT_EQ(Sample(logits), 1);
  EXPECT_EQ(Sample(logits), 1);
  EXPECT_EQ(Sample(logits), 0);
}

TEST_F(SamplerTest, MinTokensGivesWayIfNothingElseIsLeft) {
  SamplingParams params;
  params.temperature = 0.0f;
  params.min_tokens = 3;
  params.suppressed_tokens = {0, 2};
  Add(params);
  const std::vector<float> logits = {3.0f, 1.0f, 4.0f, 0.0f};
  const std::vector<uint32_t> mask = {0b0101};
  Run({.allowed_tokens = mask, .logits = logits});
  EXPECT_EQ(result_.token, 2);
}

TEST_F(SamplerTest, OnlyAllowedTokensAreDrawn) {
  constexpr int kVocab = 70;
  SetVocab(kVocab);
  const std::vector<float> logits = RandomLogits(kVocab, 12);
  const std::vector<uint32_t> mask = {1u << 31, 0, (1u << 5) | (1u << 0)};
  for (int kind = 0; kind < 4; ++kind) {
    Add({.temperature = kind == 0 ? 0.0f : 5.0f,
         .top_k = kind == 1 ? 50 : 0,
         .top_p = kind == 2 ? 0.999f : 1.0f});
    for (int i = 0; i < 200; ++i) {
      Run({.position = i, .allowed_tokens = mask, .logits = logits});
      EXPECT_THAT(result_.token, ::testing::AnyOf(31, 64, 69));
    }
  }
}

TEST_F(SamplerTest, ARowWithoutAnyAllowedTokenCannotGoOn) {
  Add({});
  const std::vector<float> logits = {3.0f, 1.0f, 4.0f, 0.0f};
  const std::vector<uint32_t> mask = {0};
  Run({.allowed_tokens = mask, .logits = logits});
  EXPECT_TRUE(result_.not_finite);
  EXPECT_EQ(result_.token, kNoToken);
}

TEST_F(SamplerTest, NanAndInfAreReported) {
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), kInf, -kInf}) {
    for (int at = 0; at < 4; ++at) {
      Add({});
      std::vector<float> logits = {3.0f, 1.0f, 4.0f, 0.0f};
      logits[at] = bad;
      Sample(logits);
      EXPECT_TRUE(result_.not_finite);
      EXPECT_EQ(result_.token, kNoToken);
      logits[at] = std::numeric_limits<float>::max();
      EXPECT_EQ(Sample(logits), at);
      EXPECT_FALSE(result_.not_finite);
    }
  }
}

TEST_F(SamplerTest, LogprobsAreTheRawLogSoftmax) {
  constexpr int kVocab = 1000;
  SetVocab(kVocab);
  const std::vector<float> logits = RandomLogits(kVocab, 13);
  double total = 0.0;
  for (float logit : logits) total += std::exp(static_cast<double>(logit));
  // Penalties, temperature and masks do not show in log-probabilities.
  SamplingParams params{.temperature = 0.5f, .repetition_penalty = 2.0f};
  Add(params, {1, 2, 3});
  Run({.num_logprobs = 5, .logits = logits});
  const PositionLogprobs& logprobs = result_.logprobs;
  EXPECT_EQ(logprobs.chosen.token, result_.token);
  const auto expect = [&](const TokenLogprob& entry) {
    // Weights are right to 2^-23 and their sum to a few of those; the result
    // is rounded to f32 at up to 16.
    EXPECT_NEAR(entry.logprob, logits[entry.token] - std::log(total), 2e-6);
  };
  expect(logprobs.chosen);
  std::vector<float> sorted = logits;
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  ASSERT_EQ(logprobs.top.size(), 5u);
  for (int i = 0; i < 5; ++i) {
    expect(logprobs.top[i]);
    EXPECT_EQ(logits[logprobs.top[i].token], sorted[i]);
  }
}

TEST_F(SamplerTest, EqualAlternativesAreOrderedById) {
  SetVocab(6);
  PositionLogprobs logprobs;
  const std::vector<float> logits = {0.0f, 2.0f, -0.0f, 2.0f, 0.0f, 1.0f};
  ComputeLogprobs(logits, 4, 5, scratch_, logprobs);
  EXPECT_EQ(logprobs.chosen.token, 4);
  std::vector<TokenId> order;
  for (const TokenLogprob& entry : logprobs.top) order.push_back(entry.token);
  EXPECT_THAT(order, ElementsAre(1, 3, 5, 0, 2));
  ComputeLogprobs(logits, 4, 0, scratch_, logprobs);
  EXPECT_THAT(logprobs.top, IsEmpty());
  ComputeLogprobs(logits, 4, 100, scratch_, logprobs);
  EXPECT_EQ(logprobs.top.size(), 6u);
}

TEST_F(SamplerTest, ScratchCarriesNothingFromRowToRow) {
  constexpr int kVocab = 400;
  SetVocab(kVocab);
  const std::vector<SamplingParams> kinds = {
      {.temperature = 0.0f, .seed = 1}, {.seed = 2},
      {.top_k = 7, .seed = 3},          {.top_p = 0.7f, .seed = 4},
      {.min_p = 0.05f, .seed = 5},      {.repetition_penalty = 1.5f}};
  const std::vector<TokenId> prompt = {1, 2, 3};
  for (const SamplingParams& params : kinds) {
    for (const SamplingParams& other : kinds) {
      const std::vector<float> logits = RandomLogits(kVocab, 14);
      Add(params, prompt);
      scratch_ = {};
      const TokenId alone = Sample(logits, 3);
      sampler_->AddSequence(1, {&other, 0, prompt});
      Run({.slot = 1, .logits = RandomLogits(kVocab, 15)});
      sampler_->RemoveSequence(1);
      Add(params, prompt);
      EXPECT_EQ(Sample(logits, 3), alone);
    }
  }
}

}  // namespace
}  // namespace binarymos
