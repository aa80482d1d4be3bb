// Whole steps of a small model on the CUDA backend: two in flight with tokens
// chosen on the device, against one at a time with tokens chosen on the host.
// The emulated device is either as early as it may be or as late: then nothing
// that was enqueued runs before it is waited for, and page-locked memory holds
// garbage until then.

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/backend/cuda_backend.h"
#include "engine/llama_runner.h"
#include "gtest/gtest.h"
#include "tests/engine/cuda/emulated_driver.h"
#include "tests/engine/test_model.h"

namespace binarymos {
namespace {

constexpr int kNumSlots = 8;
constexpr TokenId kSickToken = 7;  // its embedding is NaN

class SickBackend : public CudaBackend {
 public:
  using CudaBackend::CudaBackend;

  absl::StatusOr<std::unique_ptr<PackedLinear>> Pack(
      const LinearTensors& tensors) override {
    // The embedding comes first.
    if (std::exchange(has_embedding_, true)) return CudaBackend::Pack(tensors);
    const ConstTensorView& table = tensors.weight;
    const auto* halves = static_cast<const uint16_t*>(table.data);
    std::vector<uint16_t> sick(halves, halves + table.shape.num_elements());
    const auto row = sick.begin() + kSickToken * tensors.in_features;
    std::fill(row, row + tensors.in_features, uint16_t{0x7e00});
    LinearTensors changed = tensors;
    changed.weight.data = sick.data();
    return CudaBackend::Pack(changed);
  }

 private:
  bool has_embedding_ = false;
};

struct SideOptions {
  int max_steps_in_flight = 1;
  bool samples_on_device = false;
  bool deferred = false;
  bool emulated = true;  // else the first device that there is
};

// A model, its device and the runner.
class Side {
 public:
  explicit Side(const SideOptions& side) {
    device.deferred = side.deferred;
    TestModelOptions options;
    options.shape = SmallShape();
    options.shape.hidden_size = 64;
    options.shape.intermediate_size = 96;
    options.shape.num_layers = 1;
    options.max_tokens = 64;
    options.max_logit_rows = 5;  // logits of a step come in parts
    options.num_blocks = 64;
    if (side.emulated) {
      options.wrap = [this](std::unique_ptr<Backend>) {
        return std::make_unique<SickBackend>(
            std::make_unique<EmulatedDriver>(&device), CudaBackendOptions{});
      };
    } else {
      options.backend.device = "cuda";
    }
    model = *TestModel::Load(options);
    DeviceSampler* const sampler =
        side.samples_on_device ? model->backend().sampler() : nullptr;
    if (sampler != nullptr) {
      const absl::Status status =
          sampler->Reserve(kNumSlots, options.max_logit_rows, vocab_size());
      BINARYMOS_CHECK(status.ok()) << status.ToString();
    }
    runner = std::make_unique<LlamaRunner>(
        model->backend(), model->model(), model->kv_cache(),
        LlamaRunnerOptions{.max_num_seqs = kNumSlots,
                           .gate_sample_interval = 3,
                           .sampler = sampler,
                           .max_steps_in_flight = side.max_steps_in_flight});
  }

  int vocab_size() const { return model->vocab_size(); }

  EmulatedDevice device;
  std::unique_ptr<TestModel> model;
  std::unique_ptr<LlamaRunner> runner;
};

// A sequence and its life: it comes with step `first_step`, in chunks of
// kChunk tokens, and goes after it has sampled `num_outputs` tokens, while the
// step that samples the last may be in flight.
struct Life {
  SlotId slot = 0;
  int first_step = 0;
  int num_outputs = 1;
  SamplingParams params;
  int num_logprobs = -1;
  int num_prompt_logprobs = -1;
  std::vector<uint32_t> allowed_tokens;
  TestSequence prompt;

  static constexpr int kChunk = 6;
  int num_chunks() const { return (prompt.size() + kChunk - 1) / kChunk; }
  int end_step() const { return first_step + num_chunks() + num_outputs - 1; }
};

// What a scheduler would ask for in step `step`.
BatchPlan PlanOf(const std::vector<Life>& lives, int step) {
  BatchPlan plan;
  plan.step = step;
  for (const Life& life : lives) {
    if (step < life.first_step || step >= life.end_step()) continue;
    const int chunk = step - life.first_step;
    BatchRow row;
    row.slot = life.slot;
    row.block_table = life.prompt.blocks;
    row.num_prompt_logprobs = life.num_prompt_logprobs;
    row.sample = chunk + 1 >= life.num_chunks();
    if (row.sample) {
      row.num_logprobs = life.num_logprobs;
      row.allowed_tokens = life.allowed_tokens;
    }
    if (chunk < life.num_chunks()) {
      row.first_position = chunk * Life::kChunk;
      row.tokens = std::span(life.prompt.tokens).subspan(row.first_position);
      row.tokens =
          row.tokens.first(std::min<size_t>(row.tokens.size(), Life::kChunk));
    } else {
      row.first_position = life.prompt.size() + chunk - life.num_chunks();
      row.token_of_step = step - 1;
      row.num_prompt_logprobs = -1;
    }
    plan.num_tokens += row.num_tokens();
    plan.rows.push_back(row);
  }
  return plan;
}

// Sequences that come with `step`, after those that have gone.
void ChangeSlots(const std::vector<Life>& lives, int step, Side& side) {
  for (const Life& life : lives) {
    if (life.end_step() == step) side.runner->RemoveSequence(life.slot);
  }
  for (const Life& life : lives) {
    if (life.first_step != step) continue;
    side.runner->AddSequence(
        life.slot, {.sampling = &life.params, .prompt = life.prompt.tokens});
  }
}

// Runs all steps, with as many in flight as there may be.
std::vector<StepResult> RunSteps(const std::vector<Life>& lives, Side& side) {
  int num_steps = 0;
  for (const Life& life : lives) {
    num_steps = std::max(num_steps, life.end_step());
  }
  std::vector<StepResult> results(num_steps);
  int num_waited = 0;
  const auto wait = [&] {
    const absl::Status status = side.runner->Wait(results[num_waited++]);
    EXPECT_TRUE(status.ok()) << status;
  };
  for (int step = 0; step < num_steps; ++step) {
    ChangeSlots(lives, step, side);
    {
      const BatchPlan plan = PlanOf(lives, step);  // gone after Submit
      const absl::Status status = side.runner->Submit(plan);
      EXPECT_TRUE(status.ok()) << status;
    }
    if (step + 1 - num_waited == side.runner->max_steps_in_flight()) wait();
  }
  while (num_waited < num_steps) wait();
  return results;
}

bool SameBits(float a, float b) { return std::memcmp(&a, &b, sizeof(a)) == 0; }
bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](float x, float y) { return SameBits(x, y); });
}

void ExpectSame(const PositionLogprobs& a, const PositionLogprobs& b) {
  EXPECT_EQ(a.chosen.token, b.chosen.token);
  EXPECT_TRUE(SameBits(a.chosen.logprob, b.chosen.logprob));
  ASSERT_EQ(a.top.size(), b.top.size());
  for (size_t i = 0; i < a.top.size(); ++i) {
    EXPECT_EQ(a.top[i].token, b.top[i].token);
    EXPECT_TRUE(SameBits(a.top[i].logprob, b.top[i].logprob));
  }
}

void ExpectSame(const std::vector<StepResult>& a,
                const std::vector<StepResult>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t step = 0; step < a.size(); ++step) {
    EXPECT_EQ(a[step].step, b[step].step);
    EXPECT_TRUE(SameBits(a[step].stats.mean_gate, b[step].stats.mean_gate))
        << step;
    ASSERT_EQ(a[step].rows.size(), b[step].rows.size());
    for (size_t i = 0; i < a[step].rows.size(); ++i) {
      const StepResultRow& row = a[step].rows[i];
      const StepResultRow& other = b[step].rows[i];
      SCOPED_TRACE(testing::Message()
                   << "step " << step << ", slot " << row.slot);
      EXPECT_EQ(row.slot, other.slot);
      EXPECT_EQ(row.token, other.token);
      EXPECT_EQ(row.not_finite, other.not_finite);
      if (row.not_finite) continue;
      ExpectSame(row.logprobs, other.logprobs);
      ASSERT_EQ(row.prompt_logprobs.size(), other.prompt_logprobs.size());
      for (size_t p = 0; p < row.prompt_logprobs.size(); ++p) {
        ExpectSame(row.prompt_logprobs[p], other.prompt_logprobs[p]);
      }
    }
  }
}

TestSequence NewPrompt(Side& side, int num_tokens, uint32_t seed,
                       int num_outputs) {
  TestSequence prompt =
      side.model->NewSequence(num_tokens, seed, num_tokens + num_outputs);
  std::replace(prompt.tokens.begin(), prompt.tokens.end(), kSickToken, 8);
  return prompt;
}

// A sequence for each way to choose a token, in blocks of `side`.
std::vector<Life> LivesOfEveryKind(Side& side) {
  std::vector<Life> lives = {
      {.params = {.temperature = 0.0f}},
      {.params = {.seed = 1}, .num_logprobs = 3},
      {.params = {.top_k = 20, .seed = 2}, .num_prompt_logprobs = 2},
      {.params = {.temperature = 0.8f, .top_p = 0.7f, .seed = 3}},
      {.params = {.min_p = 0.05f, .seed = 4}, .num_logprobs = 0},
      {.params = {.temperature = 1.3f,
                  .top_k = 50,
                  .top_p = 0.9f,
                  .repetition_penalty = 1.3f,
                  .presence_penalty = 0.4f,
                  .frequency_penalty = 0.3f,
                  .seed = 5},
       .num_logprobs = 20},
      {.params = {.temperature = 0.0f, .frequency_penalty = 0.5f}},
      {.params = {.seed = 7}}};
  for (size_t i = 0; i < lives.size(); ++i) {
    Life& life = lives[i];
    life.slot = static_cast<SlotId>(i);
    life.first_step = static_cast<int>(i % 3);
    life.num_outputs = 8;
    life.prompt =
        NewPrompt(side, 1 + 3 * static_cast<int>(i), i, life.num_outputs);
  }
  lives[6].params.min_tokens = 4;
  lives[6].params.suppressed_tokens = {1, 2, 3, 40};
  lives[7].allowed_tokens.assign((side.vocab_size() + 31) / 32, 0x0f0f0f0fu);
  return lives;
}

class CudaStepTest : public testing::TestWithParam<bool> {
 protected:
  TestSequence Prompt(int num_tokens, uint32_t seed, int num_outputs) {
    return NewPrompt(two_, num_tokens, seed, num_outputs);
  }

  static SideOptions OnDevice(int max_steps_in_flight) {
    return {max_steps_in_flight, /*samples_on_device=*/true, GetParam()};
  }

  Side one_{SideOptions{}};
  Side two_{OnDevice(2)};
};

INSTANTIATE_TEST_SUITE_P(Devices, CudaStepTest, testing::Bool(),
                         [](const auto& test) {
                           return test.param ? "Late" : "Early";
                         });

TEST_P(CudaStepTest, TwoStepsInFlightGiveTheTokensOfTheHost) {
  const std::vector<Life> lives = LivesOfEveryKind(two_);
  const std::vector<StepResult> expected = RunSteps(lives, one_);
  ExpectSame(RunSteps(lives, two_), expected);
  EXPECT_GT(two_.device.num_replays, 0);
  if (GetParam()) return;
  // As with overlap off.
  Side one_on_device(OnDevice(1));
  ExpectSame(RunSteps(lives, one_on_device), expected);
}

// Both sides are on the device: the same logits, two samplers.
TEST(CudaStepOnDeviceTest, TwoStepsInFlightGiveTheTokensOfTheHost) {
  if (const auto cuda = CreateBackend({.device = "cuda"}); !cuda.ok()) {
    GTEST_SKIP() << cuda.status().message();
  }
  Side one({.emulated = false});
  Side two(
      {.max_steps_in_flight = 2, .samples_on_device = true, .emulated = false});
  const std::vector<Life> lives = LivesOfEveryKind(two);
  ExpectSame(RunSteps(lives, two), RunSteps(lives, one));
}

TEST_P(CudaStepTest, ARowThatIsNotFiniteEndsAlone) {
  std::vector<Life> lives(3);
  for (int i = 0; i < 3; ++i) {
    lives[i] = {.slot = i, .num_outputs = 6, .prompt = Prompt(5, i, 6)};
    lives[i].params.seed = i;
  }
  lives[1].prompt.tokens[3] = kSickToken;
  lives[1].num_logprobs = 2;
  lives[1].num_prompt_logprobs = 0;
  const std::vector<StepResult> results = RunSteps(lives, two_);
  for (const StepResult& result : results) {
    for (const StepResultRow& row : result.rows) {
      EXPECT_EQ(row.not_finite, row.slot == 1) << result.step;
      EXPECT_EQ(row.token == kNoToken, row.slot == 1) << result.step;
    }
  }
  ExpectSame(results, RunSteps(lives, one_));
}

TEST_P(CudaStepTest, ASlotChangesHandsWhileAStepStillSamplesForIt) {
  std::vector<Life> lives(3);
  for (int i = 0; i < 3; ++i) {
    lives[i] = {.slot = 2, .num_outputs = 4, .prompt = Prompt(4, i, 4)};
    lives[i].first_step = 4 * i;
    lives[i].params.presence_penalty = i == 1 ? 0.0f : 1.5f;
    lives[i].params.seed = 10 + i;
  }
  Life other{.slot = 0, .num_outputs = 12, .prompt = Prompt(3, 9, 12)};
  lives.push_back(other);
  const std::vector<StepResult> results = RunSteps(lives, two_);
  ExpectSame(results, RunSteps(lives, one_));

  // Alone in a slot of its own, the last has the same tokens.
  Side alone(OnDevice(2));
  Life last = lives[2];
  last.slot = 7;
  last.first_step = 0;
  const std::vector<StepResult> expected = RunSteps({last}, alone);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(results[8 + i].rows[0].token, expected[i].rows[0].token) << i;
  }
}

TEST_P(CudaStepTest, InASteadyStateAStepWaitsOnceAndAllocatesNothing) {
  constexpr int kSteps = 16;
  std::vector<Life> lives(4);
  for (int i = 0; i < 4; ++i) {
    lives[i] = {.slot = i, .num_outputs = kSteps, .prompt = Prompt(2, i, 40)};
    lives[i].params.top_p = 0.9f;
    lives[i].params.frequency_penalty = 0.1f;
    lives[i].num_logprobs = 1;
  }
  const EmulatedDevice& device = two_.device;
  StepResult result;
  EmulatedDevice before;
  constexpr int kWarm = 7;  // steps with and without gates are recorded
  for (int step = 0; step < kSteps; ++step) {
    if (step == kWarm) before = device;
    ChangeSlots(lives, step, two_);
    ASSERT_TRUE(two_.runner->Submit(PlanOf(lives, step)).ok());
    if (step > 0) {
      ASSERT_TRUE(two_.runner->Wait(result).ok());
    }
  }
  constexpr int kSteady = kSteps - kWarm;
  EXPECT_EQ(device.num_allocations, before.num_allocations);
  EXPECT_EQ(device.num_captures, before.num_captures);
  EXPECT_EQ(device.num_waits, before.num_waits);
  EXPECT_EQ(device.num_mark_waits - before.num_mark_waits, kSteady);
  EXPECT_EQ(device.num_replays - before.num_replays, kSteady);
  // The batch, and the rows to sample.
  EXPECT_EQ(device.num_copies_to_device - before.num_copies_to_device,
            2 * kSteady);
  ASSERT_TRUE(two_.runner->Wait(result).ok());
  EXPECT_EQ(result.step, kSteps - 1);
}

TEST_P(CudaStepTest, ADeviceThatFailsIsToldByWaitAndEveryWaitBehindIt) {
  const std::vector<Life> lives = {
      {.num_outputs = 8, .prompt = Prompt(3, 1, 8)}};
  ChangeSlots(lives, 0, two_);
  StepResult result;
  ASSERT_TRUE(two_.runner->Submit(PlanOf(lives, 0)).ok());
  ASSERT_TRUE(two_.runner->Submit(PlanOf(lives, 1)).ok());
  ASSERT_TRUE(two_.runner->Wait(result).ok());
  ASSERT_TRUE(two_.runner->Submit(PlanOf(lives, 2)).ok());
  two_.device.launches_until_failure = 0;
  const absl::Status status = two_.runner->Wait(result);
  EXPECT_TRUE(absl::IsInternal(status)) << status;
  two_.runner->RemoveSequence(lives[0].slot);
  EXPECT_EQ(two_.runner->Wait(result), status);
}

TEST_P(CudaStepTest, ARunnerMayGoWhileStepsAreInFlight) {
  const std::vector<Life> lives = {
      {.num_outputs = 8, .prompt = Prompt(3, 1, 8)}};
  ChangeSlots(lives, 0, two_);
  ASSERT_TRUE(two_.runner->Submit(PlanOf(lives, 0)).ok());
  ASSERT_TRUE(two_.runner->Submit(PlanOf(lives, 1)).ok());
  two_.runner.reset();
  EXPECT_EQ(two_.device.num_mark_waits, 2);
}

TEST_P(CudaStepTest, ALaunchThatFailsIsToldByTheNextWait) {
  const std::vector<Life> lives = {
      {.num_outputs = 8, .prompt = Prompt(3, 1, 8)}};
  ChangeSlots(lives, 0, two_);
  StepResult result;
  ASSERT_TRUE(two_.runner->Submit(PlanOf(lives, 0)).ok());
  two_.device.launches_until_failure = 3;
  ASSERT_TRUE(two_.runner->Submit(PlanOf(lives, 1)).ok());
  const absl::Status status = two_.runner->Wait(result);
  EXPECT_TRUE(absl::IsInternal(status)) << status;
  EXPECT_EQ(two_.runner->Wait(result), status);
}

}  // namespace
}  // namespace binarymos
