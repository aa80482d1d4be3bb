#include "engine/inspect.h"

#include <algorithm>
#include <fstream>
#include <numeric>

#include "engine/synthesize.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/engine/model/model_directory.h"

namespace binarymos {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::Pair;

int64_t BytesOf(const ModelInspection& inspection, const std::string& part) {
  for (const InspectedPart& p : inspection.parts) {
    if (p.name == part) return p.bytes;
  }
  return 0;
}

class InspectTest : public ::testing::Test {
 protected:
  absl::StatusOr<ModelInspection> Inspect(const SyntheticShape& shape) {
    const std::string path = dir_ / "model";
    const absl::Status status = SynthesizeModel(path, shape, 1);
    if (!status.ok()) return status;
    return InspectModel(path);
  }

  TempDir dir_;
};

TEST_F(InspectTest, AddsUpWhatTheTinyModelHolds) {
  const auto inspection = Inspect(SyntheticShape{});
  ASSERT_TRUE(inspection.ok()) << inspection.status();
  EXPECT_THAT(inspection->problem, IsEmpty());
  EXPECT_THAT(inspection->config, Contains(Pair("hidden_size", "256")));
  EXPECT_THAT(inspection->config, Contains(Pair("quant_method", "binarymos")));
  EXPECT_THAT(inspection->config, Contains(Pair("eos_token_ids", "[2]")));
  EXPECT_EQ(inspection->files, std::vector<std::string>{"model.safetensors"});

  const int64_t weights = 4 * (256 * (256 + 128 + 128 + 256) + 3 * 256 * 512);
  EXPECT_EQ(BytesOf(*inspection, "linear weights"), weights / 8);
  EXPECT_EQ(BytesOf(*inspection, "embeddings"), 512 * 256 * 2);
  EXPECT_EQ(BytesOf(*inspection, "lm_head"), 512 * 256 * 2);
  EXPECT_EQ(inspection->head_bytes, 512 * 256 * 2);
  EXPECT_EQ(inspection->int8_head_bytes, 512 * (256 + 4));
  EXPECT_EQ(BytesOf(*inspection, "norms"), 9 * 256 * 2);
  const int64_t gates = 4 * 4 * (4 * 256 + 2 * 256 + 512);
  EXPECT_EQ(BytesOf(*inspection, "router gates"), gates * 2);
  const int64_t scales =
      gates + 4 * 4 * (256 + 128 + 128 + 256 + 512 + 512 + 256);
  EXPECT_EQ(BytesOf(*inspection, "token-adaptive scales"), scales * 2);

  EXPECT_DOUBLE_EQ(inspection->bits_per_weight_without_scales, 1.0);
  EXPECT_DOUBLE_EQ(inspection->bits_per_weight,
                   1 + 16.0 * static_cast<double>(gates + scales) / weights);
  EXPECT_EQ(inspection->num_parameters,
            weights + gates + scales + 9 * 256 + 2 * 512 * 256);
  EXPECT_EQ(inspection->kv_bytes_per_token, 2 * 2 * 4 * 128);
  const int64_t sum = std::accumulate(
      inspection->parts.begin(), inspection->parts.end(), int64_t{0},
      [](int64_t bytes, const InspectedPart& p) { return bytes + p.bytes; });
  EXPECT_EQ(inspection->total_bytes, sum);
}

TEST_F(InspectTest, ListsTensorsInTheOrderOfTheModel) {
  const auto inspection = Inspect({.num_layers = 11});
  ASSERT_TRUE(inspection.ok()) << inspection.status();
  const auto place = [&](const std::string& name) {
    const auto it = std::find_if(
        inspection->tensors.begin(), inspection->tensors.end(),
        [&](const InspectedTensor& tensor) { return tensor.name == name; });
    EXPECT_NE(it, inspection->tensors.end()) << name;
    return it - inspection->tensors.begin();
  };
  EXPECT_EQ(place("model.embed_tokens.weight"), 0);
  EXPECT_LT(place("model.layers.2.input_layernorm.weight"),
            place("model.layers.10.input_layernorm.weight"));
  EXPECT_LT(place("model.layers.10.mlp.up_proj.sign"),
            place("model.norm.weight"));
  EXPECT_EQ(place("lm_head.weight"),
            static_cast<int64_t>(inspection->tensors.size()) - 1);
}

TEST_F(InspectTest, CountsBiasesOfAFloat16Model) {
  const auto inspection = Inspect(
      {.attention_bias = true, .mlp_bias = true, .quant_method = "float16"});
  ASSERT_TRUE(inspection.ok()) << inspection.status();
  EXPECT_DOUBLE_EQ(inspection->bits_per_weight_without_scales, 16.0);
  EXPECT_EQ(BytesOf(*inspection, "biases"),
            4 * 2 * (256 + 128 + 128 + 256 + 512 + 512 + 256));
  EXPECT_EQ(BytesOf(*inspection, "token-adaptive scales"), 0);
}

TEST_F(InspectTest, JsonSaysTheSameAsTheStruct) {
  const auto inspection = Inspect({.rope_scaling = "linear", .rope_factor = 2});
  ASSERT_TRUE(inspection.ok()) << inspection.status();
  const auto json = nlohmann::json::parse(ToJson(*inspection, true));
  EXPECT_EQ(json["total_bytes"], inspection->total_bytes);
  EXPECT_EQ(json["num_parameters"], inspection->num_parameters);
  EXPECT_EQ(json["config"]["hidden_size"], 256);
  EXPECT_EQ(json["config"]["rope_scaling"], "linear");
  EXPECT_EQ(json["config"]["rope_scaling_factor"], 2);
  EXPECT_EQ(json["config"]["tie_word_embeddings"], false);
  EXPECT_EQ(json["config"]["eos_token_ids"], nlohmann::json({2}));
  EXPECT_EQ(json["parts"].size(), inspection->parts.size());
  EXPECT_EQ(json["tensors"].size(), inspection->tensors.size());
  EXPECT_EQ(json["tensors"][0]["shape"], nlohmann::json({512, 256}));
  EXPECT_FALSE(
      nlohmann::json::parse(ToJson(*inspection, false)).contains("tensors"));
}

TEST_F(InspectTest, TextNamesPartsAndOnRequestTensors) {
  const auto inspection = Inspect(SyntheticShape{});
  ASSERT_TRUE(inspection.ok()) << inspection.status();
  const std::string summary = ToText(*inspection, false);
  EXPECT_THAT(summary, HasSubstr("Bits per weight"));
  EXPECT_THAT(summary, HasSubstr("router gates"));
  EXPECT_THAT(summary, HasSubstr("256.00 KiB"));  // an embedding
  EXPECT_THAT(summary, Not(HasSubstr("q_proj")));
  EXPECT_THAT(ToText(*inspection, true),
              HasSubstr("model.layers.3.self_attn.q_proj.sign"));
}

TEST_F(InspectTest, ShowsAModelThatCannotBeLoadedAndSaysWhy) {
  ModelDirectory model;
  model.Remove("model.norm.weight");
  model.tensors.push_back({"odd \"name\"\n", "U8", {1}});
  model.WriteTo(dir_);
  const auto inspection = InspectModel(dir_.path());
  ASSERT_TRUE(inspection.ok()) << inspection.status();
  EXPECT_THAT(inspection->problem, HasSubstr("model.norm.weight"));
  EXPECT_THAT(ToText(*inspection, true), HasSubstr("cannot be loaded"));
  EXPECT_THAT(ToText(*inspection, true), HasSubstr("odd \"name\"?"));
  const auto json = nlohmann::json::parse(ToJson(*inspection, true));
  EXPECT_EQ(json["problem"], inspection->problem);
}

TEST_F(InspectTest, RefusesADirectoryWithoutModel) {
  EXPECT_EQ(InspectModel(dir_.path()).status().code(),
            absl::StatusCode::kNotFound);
  ModelDirectory().WriteTo(dir_);
  dir_.Write("model.safetensors", "");
  EXPECT_EQ(InspectModel(dir_.path()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace binarymos
