// The CPU backend and the reference backend against LLaMA in plain double, for
// every shape family, and where the bound comes from.
//
// How far rounding may move logits is measured: tests/engine/noisy_backend.h.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/engine/noisy_backend.h"
#include "tests/engine/plain_llama.h"
#include "tests/engine/test_model.h"

namespace binarymos {
namespace {

constexpr int kNumTokens = 24;
constexpr int kMaxModelLen = 64;
constexpr int kNoiseRuns = 3;
constexpr double kSafety = 4.0;

struct Family {
  std::string name;
  SyntheticShape shape;
};

SyntheticShape BaseShape() {
  SyntheticShape shape = SmallShape();
  shape.hidden_size = 288;
  shape.intermediate_size = 352;
  shape.max_position_embeddings = kMaxModelLen;
  return shape;
}

std::vector<Family> Families() {
  std::vector<Family> families;
  const auto add = [&](const std::string& name) -> SyntheticShape& {
    families.push_back({name, BaseShape()});
    return families.back().shape;
  };
  add("GroupedQuery");
  add("MultiHead").num_kv_heads = 4;
  add("MultiQuery").num_kv_heads = 1;
  SyntheticShape& biases = add("Biases");
  biases.attention_bias = true;
  biases.mlp_bias = true;
  add("TiedEmbeddings").tie_word_embeddings = true;
  SyntheticShape& linear = add("LinearRope");
  linear.rope_scaling = "linear";
  linear.rope_factor = 4.0;
  linear.max_position_embeddings = 16;
  SyntheticShape& dynamic = add("DynamicNtkRope");
  dynamic.rope_scaling = "dynamic";
  dynamic.rope_factor = 2.0;
  dynamic.max_position_embeddings = 16;
  SyntheticShape& onebit = add("OneExpertWithoutRouter");
  onebit.num_experts = 1;
  onebit.router = false;
  add("TwoExperts").num_experts = 2;
  add("EightExperts").num_experts = 8;
  add("Float16").quant_method = "float16";
  return families;
}

class ReferenceTest : public ::testing::TestWithParam<Family> {
 protected:
  Logits Compute(const std::string& kernels, uint32_t noise_seed) {
    TestModelOptions options;
    options.shape = GetParam().shape;
    options.backend = {
        .device = "cpu", .num_threads = 2, .cpu_kernels = kernels};
    options.max_model_len = kMaxModelLen;
    options.kv_f32 = true;  // f16 keys would round differently now and then
    options.num_blocks = kMaxModelLen / kBlockSize;
    if (noise_seed != 0) {
      options.wrap = [=](std::unique_ptr<Backend> inner) {
        return std::make_unique<NoisyBackend>(std::move(inner), noise_seed);
      };
    }
    auto model = TestModel::Load(options);
    EXPECT_TRUE(model.ok()) << model.status();
    const TestSequence sequence = (*model)->NewSequence(kNumTokens, 3);
    tokens_ = sequence.tokens;
    return (*model)->ForwardInChunks(sequence, 16);
  }

  static double LargestDifference(const Logits& a, const Logits& b) {
    EXPECT_EQ(a.size(), b.size());
    double largest = 0.0;
    for (size_t i = 0; i < a.size(); ++i) {
      largest = std::max(largest, std::abs(double{a[i]} - b[i]));
    }
    return largest;
  }

  std::vector<TokenId> tokens_;
};

INSTANTIATE_TEST_SUITE_P(Families, ReferenceTest,
                         ::testing::ValuesIn(Families()),
                         [](const auto& test) { return test.param.name; });

TEST_P(ReferenceTest, LogitsAreWithinTheBound) {
  const Logits reference = Compute("reference", 0);
  double noise = 0.0;
  for (uint32_t seed = 1; seed <= kNoiseRuns; ++seed) {
    noise = std::max(noise,
                     LargestDifference(Compute("reference", seed), reference));
  }
  const double bound = kSafety * noise;
  const Logits cpu = Compute("auto", 0);

  double variance = 0.0;
  for (float logit : reference) variance += double{logit} * logit;
  const double deviation = std::sqrt(variance / reference.size());
  const double difference = LargestDifference(cpu, reference);
  std::printf("largest difference %.2e, bound %.2e, logits' deviation %.2f\n",
              difference, bound, deviation);
  EXPECT_LT(difference, bound);
  // The bound says something: it is far below what logits differ by.
  EXPECT_LT(bound, 0.05 * deviation);

  const TestModelDir dir(GetParam().shape, TestModelOptions().seed);
  const std::vector<double> plain =
      PlainLlamaLogits(dir.path(), tokens_, kMaxModelLen);
  const int vocab = GetParam().shape.vocab_size;
  ASSERT_EQ(plain.size(), static_cast<size_t>(kNumTokens) * vocab);
  double reference_error = 0.0;
  int num_decided = 0;
  for (int t = 0; t < kNumTokens; ++t) {
    const auto row = plain.begin() + static_cast<ptrdiff_t>(t) * vocab;
    std::vector<double> sorted(row, row + vocab);
    std::partial_sort(sorted.begin(), sorted.begin() + 2, sorted.end(),
                      std::greater<>());
    const auto best = std::max_element(row, row + vocab) - row;
    const auto cpu_row = cpu.begin() + static_cast<ptrdiff_t>(t) * vocab;
    const auto cpu_best = std::max_element(cpu_row, cpu_row + vocab) - cpu_row;
    if (sorted[0] - sorted[1] > 2 * bound) {
      EXPECT_EQ(cpu_best, best) << "position " << t;
      ++num_decided;
    }
    for (int i = 0; i < vocab; ++i) {
      EXPECT_NEAR(cpu_row[i], row[i], bound) << "position " << t;
      reference_error = std::max(reference_error,
                                 std::abs(reference[t * vocab + i] - row[i]));
    }
  }
  EXPECT_GT(num_decided, kNumTokens / 2);
  // The reference backend only rounds activations to f32 between operations.
  EXPECT_LT(reference_error, 1e-4);
}

}  // namespace
}  // namespace binarymos
