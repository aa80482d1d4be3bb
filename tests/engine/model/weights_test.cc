#include "engine/model/weights.h"

#include <numeric>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/fake_backend.h"
#include "tests/engine/model/model_directory.h"

namespace binarymos {
namespace {

using ::testing::HasSubstr;

// A model directory, opened.
class WeightsTest : public ::testing::Test {
 protected:
  absl::StatusOr<LlamaWeights> Load(const ModelDirectory& model,
                                    LinearKind head = LinearKind::kFloat16) {
    model.WriteTo(dir_);
    auto config = LlamaConfig::Load(dir_.path());
    if (!config.ok()) return config.status();
    auto checkpoint = Checkpoint::Open(dir_.path());
    if (!checkpoint.ok()) return checkpoint.status();
    checkpoint_.emplace(*std::move(checkpoint));
    return LlamaWeights::Load(*checkpoint_, *config, backend_, head);
  }

  static int64_t ElementsOf(const ModelDirectory& model) {
    return std::accumulate(
        model.tensors.begin(), model.tensors.end(), int64_t{0},
        [](int64_t sum, const TestTensor& tensor) {
          const auto bytes = static_cast<int64_t>(tensor.bytes());
          return sum + (tensor.dtype == "U8" ? bytes * 8 : bytes / 2);
        });
  }

  TempDir dir_;
  std::optional<Checkpoint> checkpoint_;
  FakeBackend backend_;
};

TEST_F(WeightsTest, PacksEveryLinearOfABinaryModel) {
  const ModelDirectory model;
  const auto weights = Load(model);
  ASSERT_TRUE(weights.ok()) << weights.status();
  ASSERT_EQ(weights->layers.size(), 1u);
  const LlamaLayerWeights& layer = weights->layers[0];
  EXPECT_EQ(layer.q_proj->out_features(), 16);
  EXPECT_EQ(layer.k_proj->out_features(), 8);
  EXPECT_EQ(layer.v_proj->out_features(), 8);
  EXPECT_EQ(layer.o_proj->out_features(), 16);
  EXPECT_EQ(layer.gate_proj->out_features(), 24);
  EXPECT_EQ(layer.up_proj->out_features(), 24);
  EXPECT_EQ(layer.down_proj->in_features(), 24);
  EXPECT_EQ(layer.down_proj->out_features(), 16);
  EXPECT_EQ(layer.down_proj->kind(), LinearKind::kBinaryMos);
  EXPECT_EQ(layer.down_proj->num_experts(), 2);
  EXPECT_EQ(layer.input_norm.view().shape, Shape({16}));
  EXPECT_EQ(layer.post_attention_norm.view().dtype, DType::kF16);
  EXPECT_EQ(weights->final_norm.view().shape, Shape({16}));
  EXPECT_EQ(weights->embed_tokens->kind(), LinearKind::kFloat16);
  EXPECT_EQ(weights->embed_tokens->num_experts(), 0);
  EXPECT_EQ(weights->output().out_features(), 10);
  EXPECT_EQ(&weights->output(), weights->lm_head.get());
}

TEST_F(WeightsTest, HandsTheTensorsOverAsTheyStandInTheFile) {
  const auto weights = Load(ModelDirectory());
  ASSERT_TRUE(weights.ok()) << weights.status();
  ASSERT_EQ(backend_.packed.size(), 9u);  // embedding, 7 linears, lm_head
  const LinearTensors& down = backend_.packed[7];
  const std::string prefix = "model.layers.0.mlp.down_proj";
  EXPECT_EQ(down.sign.data, checkpoint_->Find(prefix + ".sign")->data);
  EXPECT_EQ(down.gate.data, checkpoint_->Find(prefix + ".gate")->data);
  EXPECT_EQ(down.in_scale.data, checkpoint_->Find(prefix + ".in_scale")->data);
  EXPECT_EQ(down.out_scale.data,
            checkpoint_->Find(prefix + ".out_scale")->data);
  EXPECT_FALSE(down.weight);
  EXPECT_FALSE(down.bias);
  EXPECT_EQ(down.num_experts, 2);
}

TEST_F(WeightsTest, CountsParametersAndBytes) {
  const ModelDirectory model;
  const auto weights = Load(model);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->num_parameters, ElementsOf(model));
  // The fake holds what the file holds.
  EXPECT_EQ(weights->bytes, static_cast<int64_t>(DataOf(model.tensors).size()));
  // q + k + v + o + gate + up + down, in and out.
  const double elements = 16 * (16 + 8 + 8 + 16 + 24 + 24 + 24);
  const double scales = 2.0 * ((2 * 16 + 16) * 2 + (2 * 16 + 8) * 2 +
                               (2 * 16 + 24) * 2 + (2 * 24 + 16));
  EXPECT_DOUBLE_EQ(weights->bits_per_weight, 1 + 16 * scales / elements);
}

TEST_F(WeightsTest, LoadsAFloat16ModelWithBiases) {
  ModelDirectory model;
  model.MakeFloat16();
  model.config["attention_bias"] = true;
  model.config["mlp_bias"] = true;
  const std::vector<TestTensor> plain = model.tensors;
  for (const TestTensor& tensor : plain) {
    const size_t end = tensor.name.rfind("_proj.weight");
    if (end == std::string::npos) continue;
    model.tensors.push_back(
        {tensor.name.substr(0, end) + "_proj.bias", "F16", {tensor.shape[0]}});
  }
  const auto weights = Load(model);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->layers[0].q_proj->kind(), LinearKind::kFloat16);
  EXPECT_EQ(backend_.packed[1].bias.shape, Shape({16}));
  EXPECT_EQ(backend_.packed[7].bias.shape, Shape({16}));
  EXPECT_EQ(backend_.packed[7].weight.shape, Shape({16, 24}));
  EXPECT_FALSE(backend_.packed[0].bias);
  EXPECT_EQ(weights->num_parameters, ElementsOf(model));
}

TEST_F(WeightsTest, OneExpertNeedsNoRouter) {
  ModelDirectory model;
  model.config["quantization_config"]["num_experts"] = 1;
  std::erase_if(model.tensors, [](const TestTensor& tensor) {
    return tensor.name.ends_with(".gate");
  });
  for (TestTensor& tensor : model.tensors) {
    if (tensor.name.ends_with("_scale")) tensor.shape[0] = 1;
  }
  const auto weights = Load(model);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->layers[0].q_proj->num_experts(), 0);
  EXPECT_EQ(weights->num_parameters, ElementsOf(model));
}

TEST_F(WeightsTest, TiedModelsPackOneEmbedding) {
  ModelDirectory model;
  model.config["tie_word_embeddings"] = true;
  model.Remove("lm_head.weight");
  const auto weights = Load(model);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->lm_head, nullptr);
  EXPECT_EQ(&weights->output(), weights->embed_tokens.get());
  EXPECT_EQ(backend_.packed.size(), 8u);
}

TEST_F(WeightsTest, AnInt8HeadOfATiedModelIsPackedBesideTheEmbedding) {
  ModelDirectory model;
  model.config["tie_word_embeddings"] = true;
  model.Remove("lm_head.weight");
  const auto weights = Load(model, LinearKind::kInt8);
  ASSERT_TRUE(weights.ok()) << weights.status();
  ASSERT_NE(weights->lm_head, nullptr);
  EXPECT_EQ(weights->lm_head->kind(), LinearKind::kInt8);
  EXPECT_EQ(weights->embed_tokens->kind(), LinearKind::kFloat16);
  ASSERT_EQ(backend_.packed.size(), 9u);
  EXPECT_EQ(backend_.packed.back().weight.data,
            backend_.packed.front().weight.data);
}

TEST_F(WeightsTest, TiedModelsMayStoreTheSameValuesTwice) {
  ModelDirectory model;
  model.config["tie_word_embeddings"] = true;
  // 251 bytes is the period of the test data: 251 * 2 values, twice.
  model.config["vocab_size"] = 251;
  model.Remove("lm_head.weight");
  model.tensor("model.embed_tokens.weight").shape = {251, 16};
  model.tensors.insert(model.tensors.begin(),
                       {"lm_head.weight", "F16", {251, 16}});
  const auto weights = Load(model);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->lm_head, nullptr);
}

TEST_F(WeightsTest, IgnoresTheFrequenciesOfOldFiles) {
  ModelDirectory model;
  model.tensors.push_back(
      {"model.layers.0.self_attn.rotary_emb.inv_freq", "F16", {4}});
  EXPECT_TRUE(Load(model).ok());
}

TEST_F(WeightsTest, SaysWhereTheBackendRanOutOfMemory) {
  backend_.memory = 1000;
  const auto weights = Load(ModelDirectory());
  EXPECT_EQ(weights.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(weights.status().message()),
              HasSubstr("loading model.layers.0."));
  EXPECT_THAT(std::string(weights.status().message()),
              HasSubstr("the fake is full"));
}

TEST_F(WeightsTest, RefusesWhatDoesNotFitBeforeItPacks) {
  const ModelDirectory model;
  size_t bytes = 0;
  for (const TestTensor& tensor : model.tensors) bytes += tensor.bytes();
  backend_.available = bytes;
  EXPECT_TRUE(Load(model).ok());

  backend_.used = 0;
  backend_.available = bytes - 1;
  const auto weights = Load(model);
  EXPECT_EQ(weights.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(weights.status().message()),
              HasSubstr(absl::StrCat(
                  "the weights take ", bytes, " bytes, but only ", bytes - 1,
                  " bytes can be had on fake: 1 are missing")));
  EXPECT_EQ(backend_.used, 0u);
}

TEST_F(WeightsTest, ChecksBeforeItPacks) {
  ModelDirectory model;
  model.Remove("model.norm.weight");
  EXPECT_FALSE(Load(model).ok());
  EXPECT_EQ(backend_.used, 0u);
}

}  // namespace
}  // namespace binarymos
