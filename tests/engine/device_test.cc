// A whole model on a CUDA device against the same model on the CPU, and against
// itself. Tensor cores compute lm_head and other Float16 linears (half_mma.h),
// so logits are near the CPU's; among batches and chunks they are the same bit
// for bit.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "tests/engine/test_model.h"

namespace binarymos {
namespace {

// More than one split of the attention (256 positions).
constexpr int kPrompt = 270;
constexpr int kOutput = 40;

class DeviceTest : public ::testing::TestWithParam<std::string> {
 protected:
  // Skips where there is no device.
  void SetUp() override {
    const TestModelOptions options = OptionsFor("cuda");
    const auto backend = CreateBackend(options.backend);
    if (absl::IsUnavailable(backend.status())) {
      GTEST_SKIP() << backend.status().message();
    }
    device_ = Load(options);
    host_ = Load(OptionsFor("cpu"));
  }

  static TestModelOptions OptionsFor(const std::string& device) {
    TestModelOptions options;
    options.shape = SmallShape();
    options.shape.quant_method = GetParam();
    options.backend.device = device;
    options.backend.activation_bits = 16;
    options.max_tokens = 1024;
    return options;
  }

  static std::unique_ptr<TestModel> Load(const TestModelOptions& options) {
    auto model = TestModel::Load(options);
    BINARYMOS_CHECK(model.ok()) << model.status().ToString();
    return *std::move(model);
  }

  std::unique_ptr<TestModel> device_, host_;
};

INSTANTIATE_TEST_SUITE_P(Methods, DeviceTest,
                         ::testing::Values("binarymos", "float16"),
                         [](const auto& test) { return test.param; });

// Row by row the relative error, which leaves the greedy token wherever the
// largest logit leads by twice the bound. What differs by a rounding can take a
// number over a boundary, which is more than a rounding: an input of a later
// layer one of its 16 bits, 2^-15 of the largest; an element of a key or value
// a bit of its half, up to 2^-10 of itself. A row of attention's output has 64
// elements here, so such a value is 2^-13 of its norm where one position has
// all the weight, and such keys, further layers and several at a time make it
// more: eight times as much. (With tensor cores emulated that add in 26 bits
// and cut, as Hopper's are known to, these tests see up to 0.24 of the bound.)
void ExpectNear(const Logits& actual, const Logits& expected, int vocab) {
  constexpr double kBound = 0x1p-10;
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t begin = 0; begin < expected.size(); begin += vocab) {
    double error = 0, norm = 0;
    for (size_t i = begin; i < begin + vocab; ++i) {
      const double difference = double{actual[i]} - expected[i];
      error += difference * difference;
      norm += double{expected[i]} * expected[i];
    }
    EXPECT_LE(std::sqrt(error), kBound * std::sqrt(norm)) << begin / vocab;
  }
}

TEST_P(DeviceTest, APromptHasTheLogitsOfTheCpuInAnyChunks) {
  const TestSequence on_host = host_->NewSequence(kPrompt, 1);
  const Logits expected = host_->ForwardInChunks(on_host, kPrompt);
  const TestSequence whole = device_->NewSequence(kPrompt, 1);
  const Logits logits = device_->ForwardInChunks(whole, kPrompt);
  ExpectNear(logits, expected, device_->vocab_size());
  for (const int chunk : {64, 7}) {
    SCOPED_TRACE(chunk);
    const TestSequence chunked = device_->NewSequence(kPrompt, 1);
    EXPECT_TRUE(SameBits(device_->ForwardInChunks(chunked, chunk), logits,
                         device_->vocab_size()));
    device_->FreeBlocks(chunked);
  }
  device_->FreeBlocks(whole);
  host_->FreeBlocks(on_host);
}

// Decoding of several sequences of different lengths, a token each per step:
// recorded and replayed where the device can. The tokens are the greedy ones,
// or those of `followed`.
std::vector<Logits> Decode(TestModel& model, int num_sequences,
                           const std::vector<Logits>* followed = nullptr) {
  const int vocab = model.vocab_size();
  std::vector<TestSequence> sequences;
  std::vector<Logits> logits;
  for (int i = 0; i < num_sequences; ++i) {
    const int length = std::max(1, kPrompt - 30 * i);
    sequences.push_back(model.NewSequence(length, i, length + kOutput));
    logits.push_back(model.ForwardInChunks(sequences.back(), 128));
  }
  for (int step = 0; step < kOutput; ++step) {
    std::vector<TestChunk> chunks;
    for (int i = 0; i < num_sequences; ++i) {
      TestSequence& sequence = sequences[i];
      const auto end = static_cast<ptrdiff_t>(logits[i].size());
      const auto row =
          (followed == nullptr ? logits : *followed)[i].begin() + end - vocab;
      sequence.tokens.push_back(
          static_cast<TokenId>(std::max_element(row, row + vocab) - row));
      chunks.push_back({&sequence, sequence.size() - 1, sequence.size()});
    }
    const std::vector<Logits> next = model.Forward(chunks);
    for (int i = 0; i < num_sequences; ++i) {
      logits[i].insert(logits[i].end(), next[i].begin(), next[i].end());
    }
  }
  for (const TestSequence& sequence : sequences) model.FreeBlocks(sequence);
  return logits;
}

TEST_P(DeviceTest, DecodingHasTheLogitsOfTheCpuInAnyBatch) {
  const int vocab = device_->vocab_size();
  const std::vector<Logits> on_host = Decode(*host_, 9);
  const std::vector<Logits> expected = Decode(*device_, 9, &on_host);
  for (int i = 0; i < 9; ++i) ExpectNear(expected[i], on_host[i], vocab);
  for (const int batch : {1, 2}) {
    SCOPED_TRACE(batch);
    const std::vector<Logits> logits = Decode(*device_, batch, &on_host);
    for (int i = 0; i < batch; ++i) {
      EXPECT_TRUE(SameBits(logits[i], expected[i], vocab)) << "sequence " << i;
    }
  }
}

TEST_P(DeviceTest, PromptsAndTokensShareStepsWithoutChangingLogits) {
  const TestSequence prompt = device_->NewSequence(kPrompt, 3);
  const TestSequence alone = device_->NewSequence(kPrompt, 3);
  const TestSequence other = device_->NewSequence(kPrompt, 4);
  const Logits expected = device_->ForwardInChunks(alone, kPrompt);
  Logits logits;
  int of_other = 0;
  for (int begin = 0; begin < kPrompt; begin += 45) {
    const int end = std::min(kPrompt, begin + 45);
    const auto parts = device_->Forward(
        {{&other, of_other, of_other + 1}, {&prompt, begin, end}});
    ++of_other;
    logits.insert(logits.end(), parts[1].begin(), parts[1].end());
  }
  EXPECT_TRUE(SameBits(logits, expected, device_->vocab_size()));
}

}  // namespace
}  // namespace binarymos
