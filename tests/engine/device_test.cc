// A whole model on a CUDA device against the same model on the CPU: with equal
// activation bits, canonical arithmetic (DESIGN section 6) gives equal logits.

#include <gtest/gtest.h>

#include <algorithm>
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

TEST_P(DeviceTest, APromptHasTheLogitsOfTheCpu) {
  for (const int chunk : {kPrompt, 64, 7}) {
    SCOPED_TRACE(chunk);
    const TestSequence on_device = device_->NewSequence(kPrompt, 1);
    const TestSequence on_host = host_->NewSequence(kPrompt, 1);
    EXPECT_TRUE(SameBits(device_->ForwardInChunks(on_device, chunk),
                         host_->ForwardInChunks(on_host, chunk),
                         device_->vocab_size()));
    device_->FreeBlocks(on_device);
    host_->FreeBlocks(on_host);
  }
}

// Greedy decoding of several sequences of different lengths, a token each per
// step: recorded and replayed where the device can.
std::vector<Logits> Decode(TestModel& model, int num_sequences) {
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
      const auto row = logits[i].end() - vocab;
      sequence.tokens.push_back(
          static_cast<TokenId>(std::max_element(row, logits[i].end()) - row));
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
  const std::vector<Logits> expected = Decode(*host_, 9);
  for (const int batch : {1, 2, 9}) {
    SCOPED_TRACE(batch);
    const std::vector<Logits> logits = Decode(*device_, batch);
    for (int i = 0; i < batch; ++i) {
      EXPECT_TRUE(SameBits(logits[i], expected[i], device_->vocab_size()))
          << "sequence " << i;
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
