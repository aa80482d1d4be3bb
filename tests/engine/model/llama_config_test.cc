#include "engine/model/llama_config.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/model_directory.h"

namespace binarymos {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// The keys that LLaMA-1 7B has; the rest has defaults.
constexpr char kLlama1[] = R"({
  "architectures": ["LLaMAForCausalLM"], "model_type": "llama",
  "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 11008,
  "num_attention_heads": 32, "num_hidden_layers": 32, "vocab_size": 32000,
  "max_position_embeddings": 2048, "rms_norm_eps": 1e-06,
  "pad_token_id": -1, "bos_token_id": 1, "eos_token_id": 2})";

LlamaConfig ParseOrDie(const std::string& text) {
  const auto config = LlamaConfig::Parse(text, "config.json");
  BINARYMOS_CHECK(config.ok()) << config.status().message();
  return *config;
}

TEST(LlamaConfigTest, ReadsLlama1WithDefaults) {
  const LlamaConfig config = ParseOrDie(kLlama1);
  EXPECT_EQ(config.hidden_size, 4096);
  EXPECT_EQ(config.intermediate_size, 11008);
  EXPECT_EQ(config.num_layers, 32);
  EXPECT_EQ(config.num_heads, 32);
  EXPECT_EQ(config.num_kv_heads, 32);
  EXPECT_EQ(config.head_dim, 128);
  EXPECT_EQ(config.vocab_size, 32000);
  EXPECT_EQ(config.max_position_embeddings, 2048);
  EXPECT_FLOAT_EQ(config.rms_norm_eps, 1e-6f);
  EXPECT_EQ(config.rope_theta, 10000.0);
  EXPECT_EQ(config.rope_scaling, RopeScaling());
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_FALSE(config.attention_bias);
  EXPECT_FALSE(config.mlp_bias);
  EXPECT_EQ(config.bos_token, 1);
  EXPECT_THAT(config.eos_tokens, ElementsAre(2));
  EXPECT_EQ(config.quant_method, QuantMethod::kFloat16);
  EXPECT_EQ(config.num_experts, 0);
}

TEST(LlamaConfigTest, ReadsGroupedQueriesScalingTyingBiasesAndExperts) {
  ModelDirectory model;
  model.config["num_key_value_heads"] = 1;
  model.config["head_dim"] = 12;
  model.config["rope_theta"] = 500000;
  model.config["rope_scaling"] = {{"type", "dynamic"}, {"factor", 2.5}};
  model.config["tie_word_embeddings"] = true;
  model.config["attention_bias"] = true;
  model.config["mlp_bias"] = true;
  const LlamaConfig config = ParseOrDie(model.config.dump());
  EXPECT_EQ(config.num_kv_heads, 1);
  EXPECT_EQ(config.head_dim, 12);
  EXPECT_EQ(config.q_size(), 24);
  EXPECT_EQ(config.kv_size(), 12);
  EXPECT_EQ(config.rope_theta, 500000.0);
  EXPECT_EQ(config.rope_scaling,
            (RopeScaling{RopeScaling::Kind::kDynamic, 2.5}));
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_TRUE(config.attention_bias);
  EXPECT_TRUE(config.mlp_bias);
  EXPECT_EQ(config.quant_method, QuantMethod::kBinaryMos);
  EXPECT_EQ(config.num_experts, 2);
}

TEST(LlamaConfigTest, ReadsRopeParametersUnderTheirNewerNames) {
  ModelDirectory model;
  model.config["rope_parameters"] = {
      {"rope_type", "linear"}, {"factor", 4}, {"rope_theta", 20000}};
  const LlamaConfig config = ParseOrDie(model.config.dump());
  EXPECT_EQ(config.rope_theta, 20000.0);
  EXPECT_EQ(config.rope_scaling, (RopeScaling{RopeScaling::Kind::kLinear, 4}));
}

TEST(LlamaConfigTest, TakesNullAsAbsent) {
  ModelDirectory model;
  for (const char* key : {"rope_scaling", "num_key_value_heads", "head_dim",
                          "quantization_config", "bos_token_id"}) {
    model.config[key] = nullptr;
  }
  const LlamaConfig config = ParseOrDie(model.config.dump());
  EXPECT_EQ(config.num_kv_heads, 2);
  EXPECT_EQ(config.head_dim, 8);
  EXPECT_EQ(config.bos_token, -1);
  EXPECT_EQ(config.quant_method, QuantMethod::kFloat16);
}

TEST(LlamaConfigTest, CollectsEndTokensOfBothFiles) {
  const TempDir dir;
  ModelDirectory model;
  model.config["eos_token_id"] = {7, 3};
  model.WriteTo(dir);
  const auto alone = LlamaConfig::Load(dir.path());
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_THAT(alone->eos_tokens, ElementsAre(3, 7));
  dir.Write("generation_config.json", R"({"eos_token_id": [3, 5]})");
  const auto both = LlamaConfig::Load(dir.path());
  ASSERT_TRUE(both.ok()) << both.status();
  EXPECT_THAT(both->eos_tokens, ElementsAre(3, 5, 7));
}

TEST(LlamaConfigTest, AllowsAModelWithoutEndToken) {
  ModelDirectory model;
  model.config.erase("eos_token_id");
  EXPECT_THAT(ParseOrDie(model.config.dump()).eos_tokens, IsEmpty());
}

}  // namespace
}  // namespace binarymos
