// The sampling kernels, through CudaSampler, against the Sampler of the host:
// the same tokens and the same bits of log-probabilities.
#include "engine/kernels/cuda/sample.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <vector>

#include "engine/backend/cuda_backend.h"
#include "engine/sampler.h"
#include "gtest/gtest.h"
#include "tests/engine/cuda/emulated_driver.h"

namespace binarymos {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<float> RandomLogits(int vocab, uint32_t seed, float spread) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> logits(vocab);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

struct TestRow {
  SlotId slot = 0;
  int position = 0;
  int num_logprobs = -1;
  std::vector<uint32_t> mask;
  std::vector<float> logits;
};

// A Sampler on either side, told the same. Without an order: on a real device.
class CudaSampleTest
    : public testing::TestWithParam<std::optional<EmulatedOrder>> {
 protected:
  void SetUp() override {
    if (GetParam().has_value()) return;
    if (const auto cuda = CreateCudaBackend({}); !cuda.ok()) {
      GTEST_SKIP() << cuda.status().message();
    }
  }

  void Create(int vocab, int max_num_seqs) {
    vocab_ = vocab;
    max_num_seqs_ = max_num_seqs;
    if (GetParam().has_value()) {
      device_.order = *GetParam();
      backend_ = std::make_unique<CudaBackend>(
          std::make_unique<EmulatedDriver>(&device_), CudaBackendOptions{});
    } else {
      auto cuda = CreateCudaBackend({});
      ASSERT_TRUE(cuda.ok()) << cuda.status();
      backend_ = *std::move(cuda);
    }
    ASSERT_TRUE(sampler().Reserve(max_num_seqs, max_num_seqs, vocab).ok());
    host_ = std::make_unique<Sampler>(vocab, max_num_seqs);
    active_.assign(max_num_seqs, 0);
  }
  DeviceSampler& sampler() { return *backend_->sampler(); }

  void Add(SlotId slot, const SamplingParams& params,
           const std::vector<TokenId>& prompt = {},
           const std::vector<TokenId>& output = {}, uint32_t sample = 0) {
    if (active_[slot] != 0) host_->RemoveSequence(slot);
    active_[slot] = 1;
    const SequenceInit init{&params, sample, prompt, output};
    host_->AddSequence(slot, init);
    sampler().SetSlot(slot, init);
  }

  // Samples all rows at once on the device, one by one on the host. The device
  // has the rows' logits in reverse, in two parts. Returns the tokens.
  std::vector<TokenId> Step(const std::vector<TestRow>& rows) {
    const int count = static_cast<int>(rows.size());
    std::vector<DeviceSampleRow> device_rows;
    std::vector<float> logits;
    for (int i = 0; i < count; ++i) {
      const TestRow& row = rows[i];
      const auto& of_last = rows[count - 1 - i].logits;
      logits.insert(logits.end(), of_last.begin(), of_last.end());
      device_rows.push_back(
          {row.slot, row.position, count - 1 - i, row.num_logprobs, row.mask});
    }
    const Tensor on_device = Upload(logits, count);
    const BatchView empty;
    backend_->BeginStep(empty);
    sampler().SetRows(device_rows);
    const int middle = count / 2;
    const int first = count - middle;  // of the logits of the first half
    if (middle > 0) {
      TensorView part = on_device.view().FirstRows(middle);
      part.data = on_device.view().Row(first).data;
      sampler().Sample(part, first, 0, middle);
    }
    sampler().Sample(on_device.view().FirstRows(first), 0, middle, count);
    EXPECT_TRUE(backend_->EndStep().ok());
    const std::span<const DeviceSample> samples = sampler().samples();
    EXPECT_EQ(static_cast<int>(samples.size()), count);

    std::vector<TokenId> tokens;
    for (int i = 0; i < count; ++i) {
      SCOPED_TRACE(testing::Message() << "row " << i << " of " << count);
      StepResultRow expected;
      host_->Sample({rows[i].slot, rows[i].position, rows[i].num_logprobs,
                     rows[i].mask, rows[i].logits},
                    scratch_, expected);
      Compare(samples[i], rows[i], expected);
      tokens.push_back(expected.token);
    }
    return tokens;
  }

  EmulatedDevice device_;

 private:
  Tensor Upload(const std::vector<float>& logits, int rows) {
    auto tensor = backend_->Upload(
        {logits.data(), DType::kF32, Shape{rows, vocab_}, Device::kHost});
    BINARYMOS_CHECK(tensor.ok());
    return *std::move(tensor);
  }

  void Compare(const DeviceSample& sample, const TestRow& row,
               const StepResultRow& expected) {
    ASSERT_EQ(sample.token, expected.token);
    EXPECT_EQ(sample.token == kNoToken, expected.not_finite);
    if (expected.not_finite || row.num_logprobs < 0) return;
    const LogSoftmax log_softmax(sample.largest, sample.total_units);
    ExpectSame(log_softmax.Of(sample.logit), expected.logprobs.chosen.logprob);
    ASSERT_EQ(sample.top.size(), expected.logprobs.top.size());
    for (size_t i = 0; i < sample.top.size(); ++i) {
      EXPECT_EQ(sample.top[i].token, expected.logprobs.top[i].token) << i;
      ExpectSame(log_softmax.Of(sample.top[i].logit),
                 expected.logprobs.top[i].logprob);
    }
  }
  static void ExpectSame(float a, float b) {
    EXPECT_EQ(std::bit_cast<uint32_t>(a), std::bit_cast<uint32_t>(b))
        << a << " and " << b;
  }

  int vocab_ = 0;
  int max_num_seqs_ = 0;
  std::vector<uint8_t> active_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Sampler> host_;
  SamplerScratch scratch_;
};

INSTANTIATE_TEST_SUITE_P(Devices, CudaSampleTest,
                         testing::Values(EmulatedOrder::kAscending,
                                         EmulatedOrder::kDescending,
                                         std::nullopt),
                         [](const auto& test) {
                           if (!test.param.has_value()) return "OnDevice";
                           return *test.param == EmulatedOrder::kAscending
                                      ? "Ascending"
                                      : "Descending";
                         });

// Parameters of every kind and combination; `random` decides.
SamplingParams RandomParams(std::mt19937& random, int vocab) {
  const auto one_of = [&](std::initializer_list<float> values) {
    return values.begin()[random() % values.size()];
  };
  SamplingParams params;
  params.temperature = one_of({0.0f, 0.3f, 0.7f, 1.0f, 1.0f, 4.0f, 1e-40f});
  const int ks[] = {0, 0, 1, 2, 50, vocab - 1, vocab, vocab + 7};
  params.top_k = ks[random() % std::size(ks)];
  params.top_p = one_of({1.0f, 1.0f, 0.95f, 0.5f, 1e-6f, 0.999999f});
  params.min_p = one_of({0.0f, 0.0f, 0.0f, 0.05f, 1.0f});
  params.repetition_penalty = one_of({1.0f, 1.0f, 1.3f, 0.7f});
  params.presence_penalty = one_of({0.0f, 0.0f, 0.5f, -0.4f});
  params.frequency_penalty = one_of({0.0f, 0.0f, 0.25f, -0.1f});
  params.seed = (uint64_t{random()} << 32) | random();
  params.min_tokens = static_cast<int32_t>(random() % 6);
  for (uint32_t i = random() % 3; i > 0; --i) {
    params.suppressed_tokens.push_back(
        static_cast<TokenId>(random() % (vocab + 3)));
  }
  return params;
}

std::vector<TokenId> RandomTokens(std::mt19937& random, int vocab, int count) {
  std::vector<TokenId> tokens(count);
  for (TokenId& token : tokens) token = static_cast<TokenId>(random() % vocab);
  return tokens;
}

TEST_P(CudaSampleTest, RowsOfEveryKindGetTheTokensOfTheHost) {
  constexpr int kSlots = 12;
  for (const int vocab : {1, 2, 31, 33, 300, 2500}) {
    SCOPED_TRACE(testing::Message() << vocab << " tokens");
    std::mt19937 random(vocab);
    Create(vocab, kSlots);
    const int rounds = vocab < 2000 ? 6 : 2;
    for (int round = 0; round < rounds; ++round) {
      for (SlotId slot = 0; slot < kSlots; ++slot) {
        Add(slot, RandomParams(random, vocab),
            RandomTokens(random, vocab, static_cast<int>(random() % 20)),
            RandomTokens(random, vocab, static_cast<int>(random() % 4)),
            random() % 3);
      }
      for (int step = 0; step < 4; ++step) {
        std::vector<TestRow> rows;
        for (SlotId slot = 0; slot < kSlots; ++slot) {
          TestRow row{.slot = slot, .position = 10 + step};
          const float spreads[] = {3.0f, 0.01f, 40.0f};
          row.logits = RandomLogits(vocab, random(), spreads[random() % 3]);
          row.num_logprobs = static_cast<int>(random() % 22) - 1;
          if (random() % 4 == 0) {
            // Few values: ties everywhere.
            for (float& logit : row.logits) logit = std::round(logit);
          }
          if (random() % 3 == 0) {
            for (int i = 0; i < (vocab + 31) / 32; ++i) {
              row.mask.push_back(random() & random());
            }
          }
          rows.push_back(std::move(row));
        }
        Step(rows);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(CudaSampleTest, AVocabularyOf32000GetsTheTokensOfTheHost) {
  constexpr int kVocab = 32000;
  Create(kVocab, 6);
  const std::vector<SamplingParams> kinds = {
      {.temperature = 0.0f},
      {.seed = 1},
      {.temperature = 0.8f, .top_p = 0.9f, .seed = 2},
      {.top_k = 40, .top_p = 0.95f, .seed = 3},
      {.top_k = 5000, .min_p = 1e-4f, .seed = 4},
      {.temperature = 3.0f, .top_p = 0.99f, .repetition_penalty = 1.2f}};
  std::vector<TestRow> rows;
  for (SlotId slot = 0; slot < 6; ++slot) {
    Add(slot, kinds[slot], {5, 6, 7, 31999});
    rows.push_back({.slot = slot,
                    .position = 4,
                    .num_logprobs = slot % 2 == 0 ? 3 : -1,
                    .logits = RandomLogits(kVocab, slot, 3.0f)});
  }
  Step(rows);
}

TEST_P(CudaSampleTest, TiesGoToTheSmallerId) {
  constexpr int kVocab = 3000;
  Create(kVocab, 5);
  Add(0, {.top_k = 700, .seed = 1});
  Add(1, {.top_p = 0.25f, .seed = 2});
  Add(2, {.top_k = 2999, .top_p = 0.3333f, .seed = 3});
  Add(3, {.temperature = 0.0f});
  Add(4, {.top_k = 2, .seed = 5});
  for (int position = 0; position < 10; ++position) {
    std::vector<TestRow> rows;
    for (SlotId slot = 0; slot < 5; ++slot) {
      TestRow row{.slot = slot, .position = position, .num_logprobs = 20};
      row.logits.assign(kVocab, slot == 3 ? -0.0f : 1.0f);
      row.logits[2000] = slot == 3 ? 0.0f : 2.0f;
      rows.push_back(row);
    }
    const std::vector<TokenId> tokens = Step(rows);
    EXPECT_LT(tokens[1], kVocab / 2);
    EXPECT_EQ(tokens[3], 0);
    EXPECT_TRUE(tokens[4] == 0 || tokens[4] == 2000) << tokens[4];
  }
}

TEST_P(CudaSampleTest, PenaltiesCountWhatTheDeviceChoseItself) {
  constexpr int kVocab = 50;
  Create(kVocab, 1);
  SamplingParams params{.temperature = 0.0f};
  params.frequency_penalty = 0.3f;
  params.presence_penalty = 0.2f;
  params.repetition_penalty = 1.1f;
  Add(0, params, {1, 2, 2}, {3, 3});
  const std::vector<float> logits = RandomLogits(kVocab, 1, 0.5f);
  std::vector<TokenId> tokens;
  for (int step = 0; step < 60; ++step) {
    tokens.push_back(Step({{.position = step, .logits = logits}})[0]);
  }
  EXPECT_NE(tokens[0], tokens[1]);
}

TEST_P(CudaSampleTest, StopTokensWaitForMinTokensOnTheDevice) {
  Create(70, 2);
  SamplingParams params{.temperature = 0.0f};
  params.min_tokens = 3;
  params.suppressed_tokens = {64, 69, -1, 70};
  Add(0, params, {}, {1});
  Add(1, params);
  std::vector<float> logits(70, 0.0f);
  logits[64] = 2.0f;
  logits[69] = 3.0f;
  const std::vector<uint32_t> only_stops = {0, 0, (1u << 0) | (1u << 5)};
  for (const TokenId expected : {0, 0, 69}) {
    const auto tokens =
        Step({{.slot = 0, .logits = logits},
              {.slot = 1, .mask = only_stops, .logits = logits}});
    EXPECT_EQ(tokens[0], expected);
    EXPECT_EQ(tokens[1], 69);  // gives way: nothing else is left
  }
}

TEST_P(CudaSampleTest, RowsThatAreNotFiniteHaveNoTokenAndHarmNoOther) {
  constexpr int kVocab = 600;
  Create(kVocab, 4);
  for (SlotId slot = 0; slot < 4; ++slot) {
    Add(slot, {.top_p = slot == 1 ? 0.9f : 1.0f, .seed = 9});
  }
  for (const float bad : {kNan, kInf, -kInf}) {
    for (const int at : {0, 77, kVocab - 1}) {
      std::vector<TestRow> rows;
      for (SlotId slot = 0; slot < 4; ++slot) {
        rows.push_back({.slot = slot,
                        .num_logprobs = 2,
                        .logits = RandomLogits(kVocab, slot, 3.0f)});
      }
      rows[2].logits[at] = bad;
      rows[3].mask.assign((kVocab + 31) / 32, 0);  // nothing is allowed
      const std::vector<TokenId> tokens = Step(rows);
      EXPECT_GE(tokens[0], 0);
      EXPECT_GE(tokens[1], 0);
      EXPECT_EQ(tokens[2], kNoToken);
      EXPECT_EQ(tokens[3], kNoToken);
    }
  }
}

TEST_P(CudaSampleTest, ASlotForgetsWithItsSequence) {
  Create(40, 2);
  SamplingParams params{.temperature = 0.0f};
  params.presence_penalty = 10.0f;
  params.min_tokens = 9;
  params.suppressed_tokens = {1};
  const std::vector<float> logits = RandomLogits(40, 3, 1.0f);
  const auto step = [&] { return Step({{.slot = 1, .logits = logits}})[0]; };
  Add(1, params);
  const TokenId first = step();
  EXPECT_NE(step(), first);
  Add(1, params, {2, 3});  // never sampled
  Add(1, params);
  EXPECT_EQ(step(), first);
  params.suppressed_tokens = {first};
  Add(1, params);
  EXPECT_NE(step(), first);
}

}  // namespace
}  // namespace binarymos
