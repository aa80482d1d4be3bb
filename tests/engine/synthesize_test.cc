#include "engine/synthesize.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "engine/core/float16.h"
#include "engine/model/checkpoint.h"
#include "engine/model/llama_config.h"
#include "engine/model/weights.h"
#include "engine/tokenizer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/fake_backend.h"
#include "tests/engine/model/temp_dir.h"

namespace binarymos {
namespace {

using ::testing::HasSubstr;
using ::testing::TestWithParam;
using ::testing::UnorderedElementsAre;
using ::testing::Values;

std::string Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// --- Every shape loads ---

struct ShapeCase {
  const char* name;
  SyntheticShape shape;
};

void PrintTo(const ShapeCase& c, std::ostream* out) { *out << c.name; }

class SyntheticShapeTest : public TestWithParam<ShapeCase> {};

TEST_P(SyntheticShapeTest, GivesAModelThatLoads) {
  const TempDir dir;
  const std::string path = dir / "model";
  const SyntheticShape& shape = GetParam().shape;
  const absl::Status status = SynthesizeModel(path, shape, 7);
  ASSERT_TRUE(status.ok()) << status;
  const auto config = LlamaConfig::Load(path);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->num_layers, shape.num_layers);
  EXPECT_EQ(config->num_kv_heads, shape.num_kv_heads);
  EXPECT_EQ(config->vocab_size, shape.vocab_size);
  EXPECT_EQ(config->rope_theta, shape.rope_theta);
  EXPECT_EQ(Name(config->rope_scaling.kind), shape.rope_scaling);
  EXPECT_EQ(config->tie_word_embeddings, shape.tie_word_embeddings);
  EXPECT_EQ(Name(config->quant_method), shape.quant_method);
  const auto checkpoint = Checkpoint::Open(path);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  FakeBackend backend;
  const auto weights = LlamaWeights::Load(*checkpoint, *config, backend);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->layers[0].q_proj->num_experts(),
            shape.router && shape.quant_method == "binarymos"
                ? shape.num_experts
                : 0);
  const auto tokenizer = Tokenizer::Load(path);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), shape.vocab_size);
  EXPECT_EQ((*tokenizer)->bos(), config->bos_token);
  EXPECT_EQ(std::vector<TokenId>{(*tokenizer)->eos()}, config->eos_tokens);
}

INSTANTIATE_TEST_SUITE_P(
    All, SyntheticShapeTest,
    Values(ShapeCase{"Tiny", {}},
           ShapeCase{"Float16", {.quant_method = "float16"}},
           ShapeCase{"Tied", {.tie_word_embeddings = true}},
           ShapeCase{"Biased", {.attention_bias = true, .mlp_bias = true}},
           ShapeCase{"Linear", {.rope_scaling = "linear", .rope_factor = 2}},
           ShapeCase{"Dynamic",
                     {.rope_theta = 500000,
                      .rope_scaling = "dynamic",
                      .rope_factor = 1.5}},
           ShapeCase{"EightExperts", {.num_experts = 8}},
           ShapeCase{"OneBit", {.num_experts = 1, .router = false}},
           ShapeCase{"OddSizes",
                     {.hidden_size = 40,
                      .intermediate_size = 72,
                      .num_layers = 1,
                      .num_heads = 4,
                      .num_kv_heads = 1,
                      .head_dim = 6,
                      .vocab_size = 1001}},
           ShapeCase{"LargeVocabulary",
                     {.hidden_size = 8,
                      .intermediate_size = 8,
                      .num_layers = 1,
                      .num_heads = 1,
                      .num_kv_heads = 1,
                      .vocab_size = 32000}}),
    [](const auto& test) { return test.param.name; });

// --- What is written ---

class SynthesizeTest : public ::testing::Test {
 protected:
  TempDir dir_;
};

TEST_F(SynthesizeTest, WritesFourFilesAndNothingBesideThem) {
  ASSERT_TRUE(SynthesizeModel(dir_ / "model/", {}, 1).ok());
  std::vector<std::string> names;
  for (const auto& file : std::filesystem::directory_iterator(dir_ / "model")) {
    names.push_back(file.path().filename());
  }
  EXPECT_THAT(
      names, UnorderedElementsAre("config.json", "model.safetensors",
                                  "tokenizer.model", "generation_config.json"));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir_.path()), {}),
            1);
}

TEST_F(SynthesizeTest, TheSeedDecidesTheBytes) {
  ASSERT_TRUE(SynthesizeModel(dir_ / "a", {}, 1).ok());
  ASSERT_TRUE(SynthesizeModel(dir_ / "b", {}, 1).ok());
  ASSERT_TRUE(SynthesizeModel(dir_ / "c", {}, 2).ok());
  const std::string a = Read(dir_ / "a/model.safetensors");
  EXPECT_EQ(a, Read(dir_ / "b/model.safetensors"));
  EXPECT_NE(a, Read(dir_ / "c/model.safetensors"));
}

TEST_F(SynthesizeTest, LinearsKeepTheScaleOfTheirInput) {
  ASSERT_TRUE(SynthesizeModel(dir_ / "model", {}, 1).ok());
  const auto checkpoint = Checkpoint::Open(dir_ / "model");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const std::string q = "model.layers.0.self_attn.q_proj";
  int64_t ones = 0;
  const auto sign = checkpoint->Find(q + ".sign")->span<uint8_t>();
  for (const uint8_t byte : sign) ones += std::popcount(byte);
  EXPECT_NEAR(static_cast<double>(ones) / (8.0 * sign.size()), 0.5, 0.01);
  const auto mean = [&](const std::string& name) {
    const auto values = checkpoint->Find(name)->span<uint16_t>();
    double sum = 0;
    for (const uint16_t value : values) sum += HalfToFloat(value);
    return sum / static_cast<double>(values.size());
  };
  EXPECT_NEAR(mean(q + ".in_scale"), 1.0, 0.02);
  EXPECT_NEAR(mean(q + ".out_scale"), 1 / std::sqrt(256.0), 0.002);
  EXPECT_NEAR(mean(q + ".gate"), 0.0, 0.01);
  EXPECT_NEAR(mean("model.norm.weight"), 1.0, 0.02);
}

TEST_F(SynthesizeTest, FillsAnEmptyDirectoryAndSparesAFullOne) {
  std::filesystem::create_directory(dir_ / "empty");
  EXPECT_TRUE(SynthesizeModel(dir_ / "empty", {}, 1).ok());
  const absl::Status again = SynthesizeModel(dir_ / "empty", {}, 1);
  EXPECT_EQ(again.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(again.message()), HasSubstr("exists already"));
  dir_.Write("file", "x");
  EXPECT_EQ(SynthesizeModel(dir_ / "file", {}, 1).code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(SynthesizeModel(dir_ / "none/model", {}, 1).code(),
            absl::StatusCode::kNotFound);
}

TEST_F(SynthesizeTest, RefusesShapesThatCouldNotBeLoaded) {
  const std::vector<std::pair<SyntheticShape, std::string>> cases = {
      {{.hidden_size = 100}, "hidden_size is 100, expected a multiple of 8"},
      {{.num_layers = 0}, "num_hidden_layers is 0"},
      {{.num_kv_heads = 3}, "num_key_value_heads is 3"},
      {{.vocab_size = 383}, "vocab_size is 383, expected at least 384"},
      {{.rms_norm_eps = NAN}, "synthetic shape"},
      {{.rope_scaling = "yarn"}, "rope_scaling is \"yarn\""},
      {{.rope_scaling = "linear", .rope_factor = 0}, "factor is 0"},
      {{.quant_method = "gptq"}, "quant_method is \"gptq\""},
      {{.num_experts = 9}, "num_experts is 9"},
      {{.router = false}, "router is false"},
  };
  for (const auto& [shape, message] : cases) {
    const absl::Status status = SynthesizeModel(dir_ / "model", shape, 1);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
  EXPECT_TRUE(std::filesystem::is_empty(dir_.path()));
}

TEST(SyntheticShapeByNameTest, KnowsFourNames) {
  EXPECT_EQ(SyntheticShapeByName("tiny")->hidden_size, 256);
  EXPECT_EQ(SyntheticShapeByName("1b")->num_kv_heads, 4);
  EXPECT_EQ(SyntheticShapeByName("7b")->intermediate_size, 11008);
  EXPECT_EQ(SyntheticShapeByName("13b")->intermediate_size, 13824);
  const auto other = SyntheticShapeByName("huge");
  EXPECT_EQ(other.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(other.status().message()),
              HasSubstr("expected tiny, 1b, 7b or 13b"));
}

}  // namespace
}  // namespace binarymos
