#include "engine/llama_runner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "tests/engine/faulty_backend.h"
#include "tests/engine/test_model.h"

namespace binarymos {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr int kNumSlots = 8;

SyntheticShape RunnerShape() {
  SyntheticShape shape = SmallShape();
  shape.hidden_size = 64;
  shape.intermediate_size = 96;
  return shape;
}

// A runner and the sequences in its slots; computes them as a scheduler would.
class LlamaRunnerTest : public ::testing::Test {
 protected:
  void SetUp() override { Load({}); }

  void Load(TestModelOptions options, int gate_sample_interval = 4) {
    if (options.shape.hidden_size != 64) options.shape = RunnerShape();
    options.wrap = [this](std::unique_ptr<Backend> inner) {
      auto faulty = std::make_unique<FaultyBackend>(std::move(inner));
      backend_ = faulty.get();
      return faulty;
    };
    auto model = TestModel::Load(options);
    ASSERT_TRUE(model.ok()) << model.status();
    runner_.reset();
    model_ = *std::move(model);
    runner_ = std::make_unique<LlamaRunner>(
        *backend_, model_->model(), model_->kv_cache(),
        LlamaRunnerOptions{.max_num_seqs = kNumSlots,
                           .gate_sample_interval = gate_sample_interval,
                           .num_sampler_threads = 2});
  }

  // A sequence in `slot` whose first `num_prompt` tokens are its prompt.
  void Add(SlotId slot, const TestSequence& sequence,
           const SamplingParams& params, int num_prompt = -1) {
    const std::span<const TokenId> tokens = sequence.tokens;
    if (num_prompt < 0) num_prompt = sequence.size();
    runner_->AddSequence(slot, {.sampling = &params,
                                .prompt = tokens.subspan(0, num_prompt),
                                .output = tokens.subspan(num_prompt)});
  }

  static BatchRow Row(SlotId slot, const TestSequence& sequence, int begin,
                      int end) {
    BatchRow row;
    row.slot = slot;
    row.tokens = std::span(sequence.tokens).subspan(begin, end - begin);
    row.first_position = begin;
    row.block_table = sequence.blocks;
    return row;
  }
  static BatchRow SampleRow(SlotId slot, const TestSequence& sequence,
                            int begin, int end) {
    BatchRow row = Row(slot, sequence, begin, end);
    row.sample = true;
    row.num_logprobs = 3;
    return row;
  }

  StepResult Run(std::vector<BatchRow> rows) {
    BatchPlan plan;
    plan.step = next_step_++;
    for (const BatchRow& row : rows) plan.num_tokens += row.num_tokens();
    plan.rows = std::move(rows);
    absl::Status status = runner_->Submit(plan);
    EXPECT_TRUE(status.ok()) << status;
    StepResult result;
    status = runner_->Wait(result);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_EQ(result.step, plan.step);
    EXPECT_EQ(result.rows.size(), plan.rows.size());
    return result;
  }

  // Prompt in one step, then one token at a time, alone.
  std::vector<StepResultRow> Generate(TestSequence sequence, int num_tokens,
                                      const SamplingParams& params) {
    std::vector<StepResultRow> rows;
    Add(0, sequence, params);
    int computed = 0;
    for (int i = 0; i < num_tokens; ++i) {
      const int size = sequence.size();
      rows.push_back(Run({SampleRow(0, sequence, computed, size)}).rows[0]);
      computed = size;
      sequence.tokens.push_back(rows.back().token);
    }
    runner_->RemoveSequence(0);
    return rows;
  }

  FaultyBackend* backend_ = nullptr;
  std::unique_ptr<TestModel> model_;
  std::unique_ptr<LlamaRunner> runner_;
  StepId next_step_ = 0;
};

bool SameBits(float a, float b) { return std::memcmp(&a, &b, sizeof(a)) == 0; }

void ExpectSame(const PositionLogprobs& a, const PositionLogprobs& b) {
  EXPECT_EQ(a.chosen.token, b.chosen.token);
  EXPECT_TRUE(SameBits(a.chosen.logprob, b.chosen.logprob))
      << a.chosen.logprob << " " << b.chosen.logprob;
  ASSERT_EQ(a.top.size(), b.top.size());
  for (size_t i = 0; i < a.top.size(); ++i) {
    EXPECT_EQ(a.top[i].token, b.top[i].token);
    EXPECT_TRUE(SameBits(a.top[i].logprob, b.top[i].logprob));
  }
}

void ExpectSame(const StepResultRow& a, const StepResultRow& b) {
  EXPECT_EQ(a.token, b.token);
  EXPECT_EQ(a.not_finite, b.not_finite);
  ExpectSame(a.logprobs, b.logprobs);
}

TEST_F(LlamaRunnerTest, RaggedBatchesGiveWhatEachSequenceGivesAlone) {
  constexpr int kSteps = 12;
  std::vector<TestSequence> sequences;
  std::vector<SamplingParams> params(kNumSlots);
  std::vector<std::vector<StepResultRow>> alone;
  for (int i = 0; i < kNumSlots; ++i) {
    sequences.push_back(model_->NewSequence(1 + 9 * i, i, 100));
    params[i].temperature = i % 3 == 0 ? 0.0f : 0.8f;
    params[i].top_p = i % 2 == 0 ? 0.9f : 1.0f;
    params[i].frequency_penalty = i % 4 == 1 ? 0.5f : 0.0f;
    params[i].seed = i;
    alone.push_back(Generate(sequences[i], kSteps, params[i]));
  }
  std::vector<int> computed(kNumSlots, 0);
  std::vector<size_t> sampled(kNumSlots, 0);
  for (int i = 0; i < kNumSlots; ++i) Add(i, sequences[i], params[i]);
  // Chunks of five: some are in their prompts while others generate.
  for (;;) {
    std::vector<BatchRow> rows;
    for (int i = 0; i < kNumSlots; ++i) {
      if (sampled[i] == kSteps) continue;
      const int size = sequences[i].size();
      const int end = std::min(size, computed[i] + 5);
      rows.push_back(end == size ? SampleRow(i, sequences[i], computed[i], end)
                                 : Row(i, sequences[i], computed[i], end));
      computed[i] = end;
    }
    if (rows.empty()) break;
    for (const StepResultRow& row : Run(rows).rows) {
      if (computed[row.slot] < sequences[row.slot].size()) {
        EXPECT_EQ(row.token, kNoToken);
        continue;
      }
      SCOPED_TRACE(row.slot);
      ExpectSame(row, alone[row.slot][sampled[row.slot]++]);
      sequences[row.slot].tokens.push_back(row.token);
    }
  }
}

TEST_F(LlamaRunnerTest, ATokenMayBeNamedByItsStep) {
  const SamplingParams params{.seed = 3};
  const TestSequence sequence = model_->NewSequence(20, 1, 32);
  const std::vector<StepResultRow> expected = Generate(sequence, 3, params);
  Add(0, sequence, params);
  Run({SampleRow(0, sequence, 0, 20)});
  for (int i = 1; i < 3; ++i) {
    BatchRow row = SampleRow(0, sequence, 20, 20);
    row.token_of_step = next_step_ - 1;
    row.first_position = 19 + i;
    ExpectSame(Run({row}).rows[0], expected[i]);
  }
}

TEST_F(LlamaRunnerTest, ASlotGoesOnAfterPreemptionAsIfNothingHadHappened) {
  SamplingParams params{.temperature = 0.9f, .seed = 5};
  params.repetition_penalty = 1.2f;
  params.presence_penalty = 0.3f;
  params.min_tokens = 8;
  params.suppressed_tokens = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  TestSequence sequence = model_->NewSequence(30, 2, 60);
  const std::vector<StepResultRow> expected = Generate(sequence, 12, params);
  for (int i = 0; i < 6; ++i) sequence.tokens.push_back(expected[i].token);

  TestSequence again = model_->NewSequence(0, 0, 60);
  again.tokens = sequence.tokens;
  Add(3, again, params, /*num_prompt=*/30);
  Run({Row(3, again, 0, 16)});
  int computed = 16;
  for (int i = 6; i < 12; ++i) {
    const StepResultRow row =
        Run({SampleRow(3, again, computed, again.size())}).rows[0];
    ExpectSame(row, expected[i]);
    computed = again.size();
    again.tokens.push_back(row.token);
  }
}

TEST_F(LlamaRunnerTest, GreedyTokensAreTheSameWhetherOrNotLogitsAreLookedAt) {
  SamplingParams params{.temperature = 0.0f};
  params.min_tokens = 3;
  params.suppressed_tokens = {0, 1, 2, 3};
  TestSequence sequence = model_->NewSequence(20, 8, 40);
  const std::vector<StepResultRow> expected = Generate(sequence, 8, params);
  EXPECT_EQ(backend_->num_arg_max, 0);  // log-probabilities were wanted
  Add(0, sequence, params);
  for (int i = 0, computed = 0; i < 8; ++i) {
    BatchRow row = SampleRow(0, sequence, computed, sequence.size());
    row.num_logprobs = -1;
    computed = sequence.size();
    sequence.tokens.push_back(Run({row}).rows[0].token);
    EXPECT_EQ(sequence.tokens.back(), expected[i].token) << i;
    EXPECT_EQ(backend_->num_arg_max, std::max(0, i - 2));
  }
}

TEST_F(LlamaRunnerTest, OneRowThatNeedsLogitsBringsThemForAll) {
  const SamplingParams greedy{.temperature = 0.0f};
  const SamplingParams random{.seed = 3};
  const TestSequence first = model_->NewSequence(20, 8);
  const TestSequence second = model_->NewSequence(20, 9);
  const std::vector<StepResultRow> expected = {Generate(first, 1, greedy)[0],
                                               Generate(second, 1, random)[0]};
  Add(0, first, greedy);
  Add(1, second, random);
  BatchRow row = SampleRow(0, first, 0, 20);
  row.num_logprobs = -1;
  const StepResult result = Run({row, SampleRow(1, second, 0, 20)});
  EXPECT_EQ(backend_->num_arg_max, 0);
  EXPECT_EQ(result.rows[0].token, expected[0].token);
  ExpectSame(result.rows[1], expected[1]);
}

class PoisonTest : public LlamaRunnerTest,
                   public ::testing::WithParamInterface<float> {};

INSTANTIATE_TEST_SUITE_P(
    Values, PoisonTest,
    ::testing::Values(std::numeric_limits<float>::quiet_NaN(),
                      std::numeric_limits<float>::infinity()));

TEST_P(PoisonTest, ARowThatIsNotFiniteEndsAlone) {
  backend_->poison = GetParam();
  const SamplingParams params{.seed = 7};
  TestSequence healthy = model_->NewSequence(24, 4, 40);
  TestSequence sick = model_->NewSequence(24, 5, 40);
  const TokenId bad = 17;
  std::replace(healthy.tokens.begin(), healthy.tokens.end(), bad, 18);
  std::replace(sick.tokens.begin(), sick.tokens.end(), bad, 18);
  std::vector<StepResultRow> expected = Generate(healthy, 2, params);

  sick.tokens[10] = bad;
  backend_->poisoned_token = bad;
  Add(0, sick, params);
  Add(1, healthy, params);
  Add(2, sick, params);
  const StepResult first =
      Run({SampleRow(0, sick, 0, 24), SampleRow(1, healthy, 0, 24)});
  EXPECT_TRUE(first.rows[0].not_finite);
  EXPECT_EQ(first.rows[0].token, kNoToken);
  ExpectSame(first.rows[1], expected[0]);

  // One step late, the scheduler may still go on with the sick one.
  BatchRow late = SampleRow(0, sick, 24, 24);
  late.token_of_step = next_step_ - 1;
  healthy.tokens.push_back(first.rows[1].token);
  const StepResult second = Run({late, SampleRow(1, healthy, 24, 25)});
  EXPECT_TRUE(second.rows[0].not_finite);
  ExpectSame(second.rows[1], expected[1]);
}

TEST_P(PoisonTest, AGreedyRowThatIsNotFiniteEndsAlone) {
  const SamplingParams greedy{.temperature = 0.0f};
  TestSequence healthy = model_->NewSequence(24, 4);
  TestSequence sick = model_->NewSequence(24, 5);
  std::replace(healthy.tokens.begin(), healthy.tokens.end(), 17, 18);
  const StepResultRow expected = Generate(healthy, 1, greedy)[0];
  backend_->poison = GetParam();
  backend_->poisoned_token = sick.tokens[10] = 17;
  Add(0, sick, greedy);
  Add(1, healthy, greedy);
  std::vector<BatchRow> rows = {SampleRow(0, sick, 0, 24),
                                SampleRow(1, healthy, 0, 24)};
  for (BatchRow& row : rows) row.num_logprobs = -1;
  const StepResult result = Run(rows);
  EXPECT_EQ(backend_->num_arg_max, 1);
  EXPECT_TRUE(result.rows[0].not_finite);
  EXPECT_EQ(result.rows[0].token, kNoToken);
  EXPECT_FALSE(result.rows[1].not_finite);
  EXPECT_EQ(result.rows[1].token, expected.token);
}

TEST_P(PoisonTest, ASickPromptIsReportedByEveryChunk) {
  backend_->poison = GetParam();
  backend_->poisoned_token = 17;
  TestSequence sick = model_->NewSequence(24, 5);
  sick.tokens[7] = 17;
  Add(0, sick, {});
  for (int begin = 0; begin < 24; begin += 8) {
    BatchRow row = Row(0, sick, begin, begin + 8);
    row.num_prompt_logprobs = 1;
    EXPECT_TRUE(Run({row}).rows[0].not_finite) << begin;
  }
}

TEST_P(PoisonTest, BlocksOfASickSequenceAreFitForTheNext) {
  const SamplingParams params{.seed = 7};
  TestSequence sequence = model_->NewSequence(24, 4, 40);
  std::replace(sequence.tokens.begin(), sequence.tokens.end(), 17, 18);
  const StepResultRow expected = Generate(sequence, 1, params)[0];
  backend_->poison = GetParam();
  backend_->poisoned_token = 17;
  TestSequence sick = sequence;
  std::fill(sick.tokens.begin(), sick.tokens.end(), 17);
  sick.tokens.resize(40, 17);
  EXPECT_TRUE(Generate(sick, 1, params)[0].not_finite);
  ExpectSame(Generate(sequence, 1, params)[0], expected);
}

TEST_F(LlamaRunnerTest, PromptLogprobsDoNotDependOnChunks) {
  const SamplingParams params;
  const TestSequence sequence = model_->NewSequence(50, 6);
  const Logits logits = model_->ForwardInChunks(sequence, 50);
  const int vocab = model_->vocab_size();

  const auto run = [&](int chunk) {
    std::vector<PositionLogprobs> all;
    Add(0, sequence, params);
    for (int begin = 0; begin < 50; begin += chunk) {
      const int end = std::min(50, begin + chunk);
      BatchRow row = Row(0, sequence, begin, end);
      row.num_prompt_logprobs = 2;
      row.sample = end == 50;
      const StepResult result = Run({row});
      const auto& part = result.rows[0].prompt_logprobs;
      EXPECT_EQ(static_cast<int>(part.size()), end - std::max(1, begin));
      all.insert(all.end(), part.begin(), part.end());
    }
    runner_->RemoveSequence(0);
    return all;
  };
  const std::vector<PositionLogprobs> whole = run(50);
  ASSERT_THAT(whole, SizeIs(49));
  for (int position = 1; position < 50; ++position) {
    const float* row = &logits[(position - 1) * vocab];
    double total = 0.0;
    for (int i = 0; i < vocab; ++i) total += std::exp(double{row[i]});
    const TokenLogprob& chosen = whole[position - 1].chosen;
    EXPECT_EQ(chosen.token, sequence.tokens[position]);
    EXPECT_NEAR(chosen.logprob, row[chosen.token] - std::log(total), 2e-6);
    EXPECT_THAT(whole[position - 1].top, SizeIs(2));
  }
  for (int chunk : {1, 7, 16}) {
    const std::vector<PositionLogprobs> parts = run(chunk);
    ASSERT_THAT(parts, SizeIs(49));
    for (int i = 0; i < 49; ++i) ExpectSame(parts[i], whole[i]);
  }
}

TEST_F(LlamaRunnerTest, LogitsTravelInChunksWithoutBeingNoticed) {
  const SamplingParams params{.seed = 9};
  const auto run = [&] {
    std::vector<BatchRow> rows;
    std::vector<TestSequence> sequences;
    for (int i = 0; i < kNumSlots; ++i) {
      sequences.push_back(model_->NewSequence(11, i));
    }
    for (int i = 0; i < kNumSlots; ++i) {
      Add(i, sequences[i], params);
      rows.push_back(SampleRow(i, sequences[i], 0, 11));
      rows.back().num_prompt_logprobs = i % 2 == 0 ? 1 : -1;
    }
    return Run(rows);
  };
  const StepResult expected = run();
  Load({.max_logit_rows = 3});
  const StepResult result = run();
  for (int i = 0; i < kNumSlots; ++i) {
    ExpectSame(result.rows[i], expected.rows[i]);
    const auto& logprobs = result.rows[i].prompt_logprobs;
    ASSERT_THAT(logprobs, SizeIs(i % 2 == 0 ? 10 : 0));
    for (size_t j = 0; j < logprobs.size(); ++j) {
      ExpectSame(logprobs[j], expected.rows[i].prompt_logprobs[j]);
    }
  }
}

TEST_F(LlamaRunnerTest, MeanGatesAreSampledAtIntervals) {
  const SamplingParams params;
  const TestSequence sequence = model_->NewSequence(9, 1);
  Add(0, sequence, params);
  for (int step = 0; step < 9; ++step) {
    const StepResult result = Run({Row(0, sequence, step, step + 1)});
    EXPECT_EQ(result.stats.num_tokens, 1);
    EXPECT_EQ(result.stats.num_rows, 1);
    EXPECT_GT(result.stats.compute_time.count(), 0);
    if (step % 4 != 0) {
      EXPECT_THAT(result.stats.mean_gate, IsEmpty());
      continue;
    }
    const auto& gate = result.stats.mean_gate;
    ASSERT_THAT(gate, SizeIs(2 * 4));
    for (int layer = 0; layer < 2; ++layer) {
      float sum = 0.0f;
      for (int e = 0; e < 4; ++e) {
        EXPECT_GT(gate[layer * 4 + e], 0.0f);
        sum += gate[layer * 4 + e];
      }
      EXPECT_NEAR(sum, 1.0f, 1e-5f);
    }
  }
}

TEST_F(LlamaRunnerTest, ModelsWithoutRoutersHaveNoMeanGate) {
  TestModelOptions options;
  options.shape = RunnerShape();
  options.shape.quant_method = "float16";
  Load(options);
  const TestSequence sequence = model_->NewSequence(3, 1);
  Add(0, sequence, {});
  EXPECT_THAT(Run({Row(0, sequence, 0, 3)}).stats.mean_gate, IsEmpty());
}

TEST_F(LlamaRunnerTest, ProgressIsReportedAfterEveryLayer) {
  int calls = 0;
  runner_->SetProgressCallback([&] { ++calls; });
  const TestSequence sequence = model_->NewSequence(3, 1);
  Add(0, sequence, {});
  Run({Row(0, sequence, 0, 3)});
  EXPECT_EQ(calls, 2);
}

TEST_F(LlamaRunnerTest, AFailingDeviceIsReported) {
  const TestSequence sequence = model_->NewSequence(3, 1);
  Add(0, sequence, {});
  backend_->fails_after = 0;
  BatchPlan plan;
  plan.step = 0;
  plan.rows = {Row(0, sequence, 0, 3)};
  plan.num_tokens = 3;
  EXPECT_EQ(runner_->Submit(plan).code(), absl::StatusCode::kUnavailable);
}

TEST_F(LlamaRunnerTest, AllowedTokensAreObeyed) {
  const TestSequence sequence = model_->NewSequence(12, 1);
  std::vector<uint32_t> mask((model_->vocab_size() + 31) / 32, 0);
  mask[2] = 1u << 7;
  Add(0, sequence, {});
  BatchRow row = SampleRow(0, sequence, 0, 12);
  row.allowed_tokens = mask;
  EXPECT_EQ(Run({row}).rows[0].token, 71);
}

using LlamaRunnerDeathTest = LlamaRunnerTest;

TEST_F(LlamaRunnerDeathTest, PlansThatCannotBeRightAreBugs) {
  TestSequence sequence = model_->NewSequence(12, 1);
  Add(0, sequence, {});
  sequence.tokens[3] = model_->vocab_size();
  EXPECT_DEATH(Run({Row(0, sequence, 0, 12)}), "token 384");
  sequence.tokens[3] = 0;
  sequence.blocks[0] = model_->kv_cache().num_blocks();
  EXPECT_DEATH(Run({Row(0, sequence, 0, 12)}), "block 512");
}

}  // namespace
}  // namespace binarymos
