#include "engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "tests/engine/test_model.h"

namespace binarymos {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

SyntheticShape EngineShape() {
  SyntheticShape shape = SmallShape();
  shape.hidden_size = 64;
  shape.intermediate_size = 96;
  return shape;
}

class EngineTest : public ::testing::Test {
 protected:
  EngineTest() {
    options_.model_dir = dir_.path();
    options_.device = "cpu";
    options_.num_threads = 2;
    options_.max_num_seqs = 4;
    options_.max_num_batched_tokens = 64;
  }

  // Expects Load to fail and returns the message.
  std::string Failure(const EngineOptions& options, absl::StatusCode code) {
    const auto engine = Engine::Load(options);
    EXPECT_EQ(engine.status().code(), code) << engine.status();
    return std::string(engine.status().message());
  }

  const TestModelDir dir_{EngineShape(), 1};
  EngineOptions options_;
};

TEST_F(EngineTest, LoadsAndDescribesAModel) {
  const auto engine = Engine::Load(options_);
  ASSERT_TRUE(engine.ok()) << engine.status();
  const ModelInfo& info = (*engine)->info();
  EXPECT_EQ(info.architecture, "llama");
  EXPECT_EQ(info.quant_method, "binarymos");
  EXPECT_THAT(info.device, AllOf(HasSubstr("cpu"), HasSubstr("2 threads")));
  EXPECT_EQ(info.num_experts, 4);
  EXPECT_EQ(info.hidden_size, 64);
  EXPECT_EQ(info.num_layers, 2);
  EXPECT_EQ(info.num_kv_heads, 2);
  EXPECT_EQ(info.kv_bytes_per_token, 2 * 2 * 2 * 16 * 2);
  EXPECT_GT(info.num_parameters, 0);
  EXPECT_GT(info.weight_bytes, 0);
  EXPECT_GT(info.bits_per_weight, 1.0);
  EXPECT_THAT((*engine)->eos_tokens(), ElementsAre(2));
  EXPECT_GT((*engine)->tokenizer().vocab_size(), 0);

  const CacheConfig& cache = (*engine)->cache_config();
  EXPECT_EQ(cache.max_model_len, 512);
  EXPECT_EQ(cache.max_num_seqs, 4);
  EXPECT_EQ(cache.max_num_batched_tokens, 64);
  EXPECT_EQ(cache.block_size, kBlockSize);
  // What four sequences can use, unless memory is asked for.
  EXPECT_EQ(cache.num_blocks, 4 * 512 / kBlockSize);
  EXPECT_EQ(cache.bytes,
            int64_t{cache.num_blocks} * kBlockSize * info.kv_bytes_per_token);
}

TEST_F(EngineTest, ComputesAStep) {
  const auto engine = Engine::Load(options_);
  ASSERT_TRUE(engine.ok()) << engine.status();
  ModelRunner& runner = (*engine)->runner();
  const SamplingParams greedy{.temperature = 0.0f};
  const std::vector<TokenId> prompt = {1, 40, 50};
  const std::vector<BlockId> blocks = {5};
  std::vector<TokenId> tokens;
  for (SlotId slot : {0, 3}) {
    runner.AddSequence(slot, {.sampling = &greedy, .prompt = prompt});
    BatchPlan plan;
    plan.step = slot;
    plan.rows.resize(1);
    plan.rows[0].slot = slot;
    plan.rows[0].tokens = prompt;
    plan.rows[0].block_table = blocks;
    plan.rows[0].sample = true;
    plan.num_tokens = 3;
    ASSERT_TRUE(runner.Submit(plan).ok());
    StepResult result;
    ASSERT_TRUE(runner.Wait(result).ok());
    tokens.push_back(result.rows[0].token);
  }
  EXPECT_GE(tokens[0], 0);
  EXPECT_EQ(tokens[0], tokens[1]);
}

TEST_F(EngineTest, AnLmHeadOfInt8TakesHalfTheMemory) {
  SyntheticShape shape = EngineShape();
  shape.hidden_size = 512;
  const TestModelDir dir(shape, 1);
  options_.model_dir = dir.path();
  const auto exact = Engine::Load(options_);
  ASSERT_TRUE(exact.ok()) << exact.status();
  options_.lm_head = "int8";
  const auto rounded = Engine::Load(options_);
  ASSERT_TRUE(rounded.ok()) << rounded.status();
  const int64_t vocab = (*exact)->info().vocab_size;
  const int64_t padded = (vocab + 15) / 16 * 16;
  EXPECT_EQ((*exact)->info().weight_bytes - (*rounded)->info().weight_bytes,
            vocab * 512 * 2 - padded * (512 + 4));
}

TEST_F(EngineTest, StepsOverlapWhereTheyAreAskedTo) {
  for (const auto& [overlap, depth] :
       {std::pair("on", 2), std::pair("off", 1), std::pair("auto", 1)}) {
    options_.overlap = overlap;
    const auto engine = Engine::Load(options_);
    ASSERT_TRUE(engine.ok()) << engine.status();
    EXPECT_EQ((*engine)->runner().max_steps_in_flight(), depth) << overlap;
  }
}

TEST_F(EngineTest, TunesTheBudgetWhereNoneIsGiven) {
  options_.max_num_batched_tokens = 0;
  const auto engine = Engine::Load(options_);
  ASSERT_TRUE(engine.ok()) << engine.status();
  const int budget = (*engine)->cache_config().max_num_batched_tokens;
  EXPECT_GE(budget, 64);
  EXPECT_LE(budget, 2048);
  EXPECT_EQ(budget & (budget - 1), 0);
}

TEST_F(EngineTest, HonoursTheCacheMemoryThatIsAskedFor) {
  options_.kv_cache_memory = 1 << 20;
  options_.max_model_len = 100;
  const auto engine = Engine::Load(options_);
  ASSERT_TRUE(engine.ok()) << engine.status();
  EXPECT_EQ((*engine)->cache_config().num_blocks,
            (1 << 20) / (kBlockSize * 2 * 2 * 2 * 16 * 2));
  EXPECT_EQ((*engine)->cache_config().max_model_len, 100);
}

TEST_F(EngineTest, InFloat8TheSameCacheMemoryHoldsTwiceThePositions) {
  options_.kv_cache_memory = 1 << 20;
  const auto halves = Engine::Load(options_);
  ASSERT_TRUE(halves.ok()) << halves.status();
  EXPECT_EQ((*halves)->info().kv_cache_dtype, "f16");
  options_.kv_cache_dtype = "fp8_e4m3";
  const auto bytes = Engine::Load(options_);
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  EXPECT_EQ((*bytes)->info().kv_cache_dtype, "fp8_e4m3");
  EXPECT_EQ((*bytes)->cache_config().num_blocks,
            2 * (*halves)->cache_config().num_blocks);
}

TEST_F(EngineTest, OptionsOutOfRangeAreNamed) {
  const struct {
    const char* option;
    void (*change)(EngineOptions&);
  } cases[] = {
      {"--model", [](EngineOptions& o) { o.model_dir = ""; }},
      {"--threads", [](EngineOptions& o) { o.num_threads = -1; }},
      {"--threads", [](EngineOptions& o) { o.num_threads = 5000; }},
      {"--kv-cache-dtype", [](EngineOptions& o) { o.kv_cache_dtype = "fp8"; }},
      {"--lm-head", [](EngineOptions& o) { o.lm_head = "int4"; }},
      {"--max-num-seqs", [](EngineOptions& o) { o.max_num_seqs = 0; }},
      {"--max-num-seqs", [](EngineOptions& o) { o.max_num_seqs = 1025; }},
      {"--max-model-len", [](EngineOptions& o) { o.max_model_len = -1; }},
      {"--max-model-len", [](EngineOptions& o) { o.max_model_len = 513; }},
      {"--max-num-batched-tokens",
       [](EngineOptions& o) { o.max_num_batched_tokens = -5; }},
      {"--max-num-batched-tokens",
       [](EngineOptions& o) { o.max_num_batched_tokens = 1 << 20; }},
      {"--kv-cache-memory", [](EngineOptions& o) { o.kv_cache_memory = -1; }},
      {"--gate-sample-interval",
       [](EngineOptions& o) { o.gate_sample_interval = -1; }},
      {"--overlap", [](EngineOptions& o) { o.overlap = "maybe"; }},
      {"device", [](EngineOptions& o) { o.device = "tpu"; }},
      {"cpu_kernels", [](EngineOptions& o) { o.cpu_kernels = "sse9"; }},
      {"activation_bits", [](EngineOptions& o) { o.activation_bits = 13; }},
      {"fast_linear",
       [](EngineOptions& o) {
         o.device = "cpu";
         o.fast_linear = true;
       }},
  };
  for (const auto& test : cases) {
    EngineOptions options = options_;
    test.change(options);
    EXPECT_THAT(Failure(options, absl::StatusCode::kInvalidArgument),
                HasSubstr(test.option));
  }
}

TEST_F(EngineTest, AMissingModelIsNotFound) {
  options_.model_dir += "-elsewhere";
  EXPECT_THAT(Failure(options_, absl::StatusCode::kNotFound),
              HasSubstr("config.json"));
}

TEST_F(EngineTest, TooLittleCacheMemoryIsExplained) {
  options_.kv_cache_memory = 10000;
  EXPECT_THAT(
      Failure(options_, absl::StatusCode::kResourceExhausted),
      AllOf(HasSubstr("one sequence of 512 positions"),
            HasSubstr("--kv-cache-memory"), HasSubstr("--max-model-len")));
}

TEST_F(EngineTest, MoreCacheMemoryThanThereIsIsRefused) {
  options_.kv_cache_memory = int64_t{1} << 45;
  EXPECT_THAT(Failure(options_, absl::StatusCode::kResourceExhausted),
              HasSubstr("are left after weights and workspaces"));
}

TEST_F(EngineTest, ATokenizerOfAnotherModelIsRefused) {
  SyntheticShape larger = EngineShape();
  larger.vocab_size = kMinSyntheticVocab + 64;
  const TestModelDir other(larger, 1);
  std::filesystem::copy_file(other.path() + "/tokenizer.model",
                             dir_.path() + "/tokenizer.model",
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_THAT(Failure(options_, absl::StatusCode::kInvalidArgument),
              AllOf(HasSubstr("448 tokens"), HasSubstr("vocab_size")));
}

TEST_F(EngineTest, ScaledModelsMayBeLonger) {
  SyntheticShape shape = EngineShape();
  shape.rope_scaling = "dynamic";
  shape.rope_factor = 2.0;
  const TestModelDir dynamic(shape, 1);
  options_.model_dir = dynamic.path();
  options_.max_model_len = 3000;
  auto engine = Engine::Load(options_);
  ASSERT_TRUE(engine.ok()) << engine.status();
  EXPECT_EQ((*engine)->cache_config().max_model_len, 3000);

  shape.rope_scaling = "linear";
  const TestModelDir linear(shape, 1);
  options_.model_dir = linear.path();
  options_.max_model_len = 1024;
  EXPECT_TRUE(Engine::Load(options_).ok());
  options_.max_model_len = 1025;
  EXPECT_THAT(Failure(options_, absl::StatusCode::kInvalidArgument),
              HasSubstr("linear"));
}

}  // namespace
}  // namespace binarymos
