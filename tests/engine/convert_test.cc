#include "engine/convert.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>

#include "absl/strings/match.h"
#include "engine/core/float16.h"
#include "engine/manifest.h"
#include "engine/model/checkpoint.h"
#include "engine/model/llama_config.h"
#include "engine/model/weights.h"
#include "engine/synthesize.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/temp_dir.h"
#include "tests/engine/training_checkpoint.h"

namespace binarymos {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Values;

constexpr char kQ[] = "model.layers.1.self_attn.q_proj";
constexpr char kNorm[] = "model.norm.weight";

std::string Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<std::string> FilesIn(const std::string& dir) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(dir)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

// A source, and a folder of its own for the target.
class ConvertTest : public ::testing::Test {
 protected:
  ConvertTest() {
    options_.source = source_.path();
    options_.target = folder_ / "packed";
  }

  absl::StatusOr<ConvertReport> Convert() { return ConvertModel(options_); }

  void ExpectRefused(absl::StatusCode code, const std::string& message) {
    const auto report = Convert();
    EXPECT_EQ(report.status().code(), code) << report.status();
    EXPECT_THAT(std::string(report.status().message()), HasSubstr(message));
    EXPECT_THAT(FilesIn(folder_.path()), ElementsAre());
  }

  // Everything that loading checks, and the manifest.
  void ExpectLoads() {
    const auto config = LlamaConfig::Load(options_.target);
    ASSERT_TRUE(config.ok()) << config.status();
    const auto checkpoint = Checkpoint::Open(options_.target);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const absl::Status status = CheckWeights(*checkpoint, *config);
    EXPECT_TRUE(status.ok()) << status;
    const absl::Status verified = VerifyManifest(options_.target);
    EXPECT_TRUE(verified.ok()) << verified;
  }

  std::vector<float> Halves(const std::string& name) {
    const auto checkpoint = Checkpoint::Open(options_.target);
    const auto tensor = checkpoint->Find(name);
    EXPECT_TRUE(tensor.ok()) << tensor.status();
    std::vector<float> values;
    if (!tensor.ok()) return values;
    for (const uint16_t half : tensor->span<uint16_t>()) {
      values.push_back(HalfToFloat(half));
    }
    return values;
  }

  // -1 and +1.
  std::vector<int> Signs(const std::string& name) {
    const auto checkpoint = Checkpoint::Open(options_.target);
    const auto tensor = checkpoint->Find(name);
    EXPECT_TRUE(tensor.ok()) << tensor.status();
    std::vector<int> signs;
    if (!tensor.ok()) return signs;
    for (const uint8_t byte : tensor->span<uint8_t>()) {
      for (int i = 0; i < 8; ++i) signs.push_back((byte >> i & 1) ? 1 : -1);
    }
    return signs;
  }

  void ExpectSame(const TrainingCheckpoint& source) {
    for (const FloatTensor& tensor : source.tensors) {
      std::string name = tensor.name;
      const auto renamed = [&](const std::string& from, const std::string& to) {
        if (!absl::EndsWith(name, from)) return false;
        name = name.substr(0, name.size() - from.size()) + to;
        return true;
      };
      if (renamed("_proj.weight", "_proj.sign")) {
        const std::vector<int> signs = Signs(name);
        ASSERT_EQ(signs.size(), tensor.values.size());
        for (size_t i = 0; i < signs.size(); ++i) {
          ASSERT_EQ(signs[i], tensor.values[i] < 0 ? -1 : 1) << name << i;
        }
        continue;
      }
      (void)(renamed(".in_channel_scale", ".in_scale") ||
             renamed(".out_channel_scale", ".out_scale") ||
             renamed(".gate_linear.weight", ".gate"));
      EXPECT_EQ(Halves(name), tensor.values) << name;
    }
  }

  TempDir source_;
  TempDir folder_;
  ConvertOptions options_;
};

class ConvertTypesTest : public ConvertTest,
                         public ::testing::WithParamInterface<const char*> {};

TEST_P(ConvertTypesTest, PacksSignsAndKeepsEverythingElse) {
  TrainingCheckpoint source = MakeTrainingCheckpoint(4);
  source.SetDType(GetParam());
  source.WriteTo(source_);
  const auto report = Convert();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->quant_method, "binarymos");
  EXPECT_EQ(report->num_experts, 4);
  EXPECT_EQ(report->num_zeros, 0);
  EXPECT_EQ(report->num_tensors, static_cast<int>(source.tensors.size()));
  ExpectLoads();
  ExpectSame(source);
}

INSTANTIATE_TEST_SUITE_P(Types, ConvertTypesTest, Values("F16", "BF16", "F32"));

TEST_F(ConvertTest, ReadsShards) {
  const TrainingCheckpoint source = MakeTrainingCheckpoint(2);
  source.WriteTo(source_, 3);
  ASSERT_TRUE(Convert().ok());
  ExpectLoads();
  ExpectSame(source);
}

TEST_F(ConvertTest, WritesShardsWhenOneFileWouldBeTooLarge) {
  const TrainingCheckpoint source = MakeTrainingCheckpoint(2);
  source.WriteTo(source_);
  options_.max_shard_bytes = 2000;
  ASSERT_TRUE(Convert().ok());
  ExpectLoads();
  ExpectSame(source);
  EXPECT_FALSE(std::filesystem::exists(options_.target + "/model.safetensors"));
  EXPECT_GT(Checkpoint::Open(options_.target)->files().size(), 2u);
}

TEST_F(ConvertTest, TheSameSourceGivesTheSameBytes) {
  MakeTrainingCheckpoint(2).WriteTo(source_);
  ASSERT_TRUE(Convert().ok());
  const std::string manifest = Read(options_.target + "/manifest.json");
  options_.target = folder_ / "again";
  ASSERT_TRUE(Convert().ok());
  EXPECT_EQ(Read(options_.target + "/manifest.json"), manifest);
}

TEST_F(ConvertTest, AModelWithOneExpertNeedsNoRouter) {
  MakeTrainingCheckpoint(1).WriteTo(source_);
  ASSERT_TRUE(Convert().ok());
  ExpectLoads();
  EXPECT_FALSE(
      Checkpoint::Open(options_.target)->Contains(std::string(kQ) + ".gate"));
}

TEST_F(ConvertTest, AcceptsTheAuthorsNameOfTheArchitecture) {
  TrainingCheckpoint source = MakeTrainingCheckpoint(2);
  source.config["architectures"] =
      nlohmann::json::array({"BinaryMoSForCausalLM"});
  source.WriteTo(source_);
  ASSERT_TRUE(Convert().ok());
  ExpectLoads();
}

TEST_F(ConvertTest, CopiesTokenizerAndDefaults) {
  MakeTrainingCheckpoint(2).WriteTo(source_);
  auto report = Convert();
  ASSERT_TRUE(report.ok());
  EXPECT_FALSE(report->has_tokenizer);
  source_.Write("tokenizer.model", "T");
  source_.Write("tokenizer_config.json", "{}");
  source_.Write("generation_config.json", "{\"eos_token_id\": [2, 3]}");
  source_.Write("pytorch_model.bin", "not copied");
  options_.target = folder_ / "again";
  report = Convert();
  ASSERT_TRUE(report.ok());
  EXPECT_TRUE(report->has_tokenizer);
  EXPECT_THAT(FilesIn(options_.target),
              ElementsAre("config.json", "generation_config.json",
                          "manifest.json", "model.safetensors",
                          "tokenizer.model", "tokenizer_config.json"));
  ExpectLoads();
}

TEST_F(ConvertTest, ReadsWhatSynthesizeWritesForIt) {
  SyntheticShape shape;
  shape.quant_method = "binarymos-training";
  shape.num_layers = 1;
  options_.source = folder_ / "source";
  ASSERT_TRUE(SynthesizeModel(options_.source, shape, 1).ok());
  const auto report = Convert();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(report->has_tokenizer);
  EXPECT_EQ(report->num_zeros, 0);
  ExpectLoads();
}

// --- Values that have no place in the target ---

TEST_F(ConvertTest, CountsZerosOfBothSignsWhichBecomePlusOne) {
  TrainingCheckpoint source = MakeTrainingCheckpoint(2);
  FloatTensor& weight = source.tensor(std::string(kQ) + ".weight");
  weight.values[3] = 0.0f;
  weight.values[17] = -0.0f;
  source.tensor(kNorm).values[0] = 0.0f;  // is a number like any other
  source.WriteTo(source_);
  const auto report = Convert();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->num_zeros, 2);
  ASSERT_EQ(report->zeros.size(), 1u);
  EXPECT_EQ(report->zeros[0].tensor, weight.name);
  EXPECT_EQ(report->zeros[0].num_zeros, 2);
  EXPECT_EQ(report->zeros[0].num_elements, 24 * 24);
  const std::vector<int> signs = Signs(std::string(kQ) + ".sign");
  EXPECT_EQ(signs[3], 1);
  EXPECT_EQ(signs[17], 1);
}

TEST_F(ConvertTest, StrictRefusesZeros) {
  TrainingCheckpoint source = MakeTrainingCheckpoint(2);
  source.tensor(std::string(kQ) + ".weight").values[3] = 0.0f;
  source.WriteTo(source_);
  options_.strict = true;
  ExpectRefused(absl::StatusCode::kFailedPrecondition,
                "\"model.layers.1.self_attn.q_proj.weight\" has 1 exact zeros");
}

TEST_F(ConvertTest, TakesTheSignOfNumbersThatFloat16WouldLose) {
  TrainingCheckpoint source = MakeTrainingCheckpoint(2);
  source.SetDType("F32");
  FloatTensor& weight = source.tensor(std::string(kQ) + ".weight");
  weight.values[0] = -1e-30f;
  weight.values[1] = -1e30f;
  source.tensor(kNorm).values[0] = 1e-30f;
  source.WriteTo(source_);
  const auto report = Convert();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->num_zeros, 0);
  EXPECT_EQ(report->num_flushed, 1);
  EXPECT_EQ(Signs(std::string(kQ) + ".sign")[0], -1);
  EXPECT_EQ(Signs(std::string(kQ) + ".sign")[1], -1);
}

struct BadValue {
  const char* name;
  std::string tensor;
  float value;
  const char* message;
};

class ConvertValuesTest : public ConvertTest,
                          public ::testing::WithParamInterface<BadValue> {};

TEST_P(ConvertValuesTest, AreRefusedByName) {
  TrainingCheckpoint source = MakeTrainingCheckpoint(2);
  source.SetDType("F32");
  source.tensor(GetParam().tensor).values[5] = GetParam().value;
  source.WriteTo(source_);
  ExpectRefused(absl::StatusCode::kInvalidArgument, GetParam().message);
}

INSTANTIATE_TEST_SUITE_P(
    BadValues, ConvertValuesTest,
    Values(BadValue{"NanLatent", std::string(kQ) + ".weight",
                    std::numeric_limits<float>::quiet_NaN(),
                    "q_proj.weight\" holds NaN at element 5"},
           BadValue{"InfLatent", std::string(kQ) + ".weight",
                    -std::numeric_limits<float>::infinity(),
                    "q_proj.weight\" holds Inf at element 5"},
           BadValue{"NanScale", std::string(kQ) + ".in_channel_scale",
                    std::numeric_limits<float>::quiet_NaN(),
                    "q_proj.in_channel_scale\" holds NaN"},
           BadValue{"LargeNorm", kNorm, 70000.0f,
                    "\"model.norm.weight\" holds 70000 at element 5, which "
                    "does not fit float16"},
           BadValue{"InfEmbedding", "model.embed_tokens.weight",
                    std::numeric_limits<float>::infinity(),
                    "embed_tokens.weight\" holds Inf"}),
    [](const auto& test) { return test.param.name; });

// --- Sources that are not right ---

TEST_F(ConvertTest, RefusesAMissingTensor) {
  TrainingCheckpoint source = MakeTrainingCheckpoint(2);
  std::erase_if(source.tensors, [](const FloatTensor& tensor) {
    return tensor.name == std::string(kQ) + ".gate_linear.weight";
  });
  source.WriteTo(source_);
  ExpectRefused(absl::StatusCode::kInvalidArgument,
                "q_proj.gate_linear.weight\" is missing, expected F16, BF16 or "
                "F32 [2, 24]");
}

TEST_F(ConvertTest, RefusesAnotherShape) {
  TrainingCheckpoint source = MakeTrainingCheckpoint(2);
  source.config["num_expert"] = 3;
  source.WriteTo(source_);
  ExpectRefused(absl::StatusCode::kInvalidArgument,
                "is F16 [2, 24], expected F16, BF16 or F32 [3, 24]");
}

TEST_F(ConvertTest, RefusesASuperfluousTensor) {
  TrainingCheckpoint source = MakeTrainingCheckpoint(2);
  source.tensors.push_back({"model.extra.weight", "F16", {1}, {1.0f}});
  source.WriteTo(source_);
  ExpectRefused(absl::StatusCode::kInvalidArgument,
                "\"model.extra.weight\" is not expected");
}

TEST_F(ConvertTest, RefusesATruncatedFile) {
  MakeTrainingCheckpoint(2).WriteTo(source_);
  const std::string path = source_ / "model.safetensors";
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
  ExpectRefused(absl::StatusCode::kInvalidArgument, "model.safetensors");
}

TEST_F(ConvertTest, RefusesWhatIsPackedAlready) {
  TrainingCheckpoint source = MakeTrainingCheckpoint(2);
  source.config["quantization_config"] = {{"quant_method", "binarymos"}};
  source.WriteTo(source_);
  ExpectRefused(absl::StatusCode::kInvalidArgument, "packed or quantized");
}

TEST_F(ConvertTest, RefusesWhatIsNotSafetensors) {
  TrainingCheckpoint source = MakeTrainingCheckpoint(2);
  source.WriteTo(source_);
  std::filesystem::remove(source_ / "model.safetensors");
  source_.Write("pytorch_model.bin", "x");
  ExpectRefused(absl::StatusCode::kNotFound, "save it as safetensors first");
}

TEST_F(ConvertTest, RefusesANumberOfExpertsThatIsNotOne) {
  for (const nlohmann::json& value :
       {nlohmann::json(0), nlohmann::json(9), nlohmann::json("4"),
        nlohmann::json(2.5), nlohmann::json(-1)}) {
    TrainingCheckpoint source = MakeTrainingCheckpoint(2);
    source.config["num_expert"] = value;
    source.WriteTo(source_);
    ExpectRefused(absl::StatusCode::kInvalidArgument,
                  "num_expert: expected an integer from 1 to 8");
  }
}

// --- Plain float models ---

TEST_F(ConvertTest, APlainModelNeedsAMethod) {
  MakeTrainingCheckpoint(0).WriteTo(source_);
  ExpectRefused(absl::StatusCode::kInvalidArgument, "--method float16");
  options_.method = "other";
  ExpectRefused(absl::StatusCode::kInvalidArgument, "--method is \"other\"");
}

TEST_F(ConvertTest, ATrainedModelTakesNoMethod) {
  MakeTrainingCheckpoint(2).WriteTo(source_);
  options_.method = "onebit";
  ExpectRefused(absl::StatusCode::kInvalidArgument,
                "this is a BinaryMoS training checkpoint");
}

TEST_F(ConvertTest, WritesAPlainModelInFloat16) {
  TrainingCheckpoint source = MakeTrainingCheckpoint(0);
  source.SetDType("BF16");
  source.WriteTo(source_);
  options_.method = "float16";
  const auto report = Convert();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->quant_method, "float16");
  ExpectLoads();
  for (const FloatTensor& tensor : source.tensors) {
    EXPECT_EQ(Halves(tensor.name), tensor.values) << tensor.name;
  }
}

TEST_F(ConvertTest, OneBitStartsFromTheRankOneApproximation) {
  TrainingCheckpoint source = MakeTrainingCheckpoint(0);
  FloatTensor& weight = source.tensor(std::string(kQ) + ".weight");
  for (int o = 0; o < 24; ++o) {
    for (int i = 0; i < 24; ++i) {
      const float magnitude = std::ldexp(1.0f, o % 3 - 4 + i % 2);
      weight.values[o * 24 + i] = (o + i) % 3 == 0 ? -magnitude : magnitude;
    }
  }
  source.WriteTo(source_);
  options_.method = "onebit";
  const auto report = Convert();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->num_experts, 1);
  ExpectLoads();
  const std::vector<int> signs = Signs(std::string(kQ) + ".sign");
  const std::vector<float> in = Halves(std::string(kQ) + ".in_scale");
  const std::vector<float> out = Halves(std::string(kQ) + ".out_scale");
  ASSERT_EQ(in.size(), 24u);
  for (int o = 0; o < 24; ++o) {
    for (int i = 0; i < 24; ++i) {
      const float expected = weight.values[o * 24 + i];
      // Two roundings to float16.
      EXPECT_NEAR(signs[o * 24 + i] * in[i] * out[o], expected,
                  std::abs(expected) * 0x1p-9f);
    }
  }
  EXPECT_EQ(Halves(std::string(kQ) + ".bias"),
            source.tensor(std::string(kQ) + ".bias").values);
}

TEST_F(ConvertTest, UntrainedExpertsAreTheSame) {
  MakeTrainingCheckpoint(0).WriteTo(source_);
  options_.method = "binarymos-init";
  options_.num_experts = 3;
  ASSERT_TRUE(Convert().ok());
  ExpectLoads();
  const std::vector<float> in = Halves(std::string(kQ) + ".in_scale");
  ASSERT_EQ(in.size(), 3u * 24);
  for (int i = 0; i < 24; ++i) {
    EXPECT_EQ(in[24 + i], in[i]);
    EXPECT_EQ(in[48 + i], in[i]);
  }
  const std::vector<float> gate = Halves(std::string(kQ) + ".gate");
  EXPECT_NE(gate[0], gate[24]);
  for (const float value : gate) EXPECT_LE(std::abs(value), 0.2042f);
}

TEST_F(ConvertTest, ATiedHeadIsNotWritten) {
  TrainingCheckpoint source = MakeTrainingCheckpoint(0);
  source.config["tie_word_embeddings"] = true;
  source.WriteTo(source_);
  options_.method = "float16";
  ExpectRefused(absl::StatusCode::kInvalidArgument,
                "differs from model.embed_tokens.weight");
  source.tensor("lm_head.weight").values =
      source.tensor("model.embed_tokens.weight").values;
  source.WriteTo(source_);
  ASSERT_TRUE(Convert().ok());
  ExpectLoads();
  EXPECT_FALSE(Checkpoint::Open(options_.target)->Contains("lm_head.weight"));
}

// --- All or nothing ---

TEST_F(ConvertTest, NeverOverwritesUnlessForced) {
  MakeTrainingCheckpoint(2).WriteTo(source_);
  ASSERT_TRUE(Convert().ok());
  std::ofstream(options_.target + "/mark") << "old";
  auto report = Convert();
  EXPECT_TRUE(absl::IsAlreadyExists(report.status())) << report.status();
  EXPECT_EQ(Read(options_.target + "/mark"), "old");
  options_.force = true;
  report = Convert();
  ASSERT_TRUE(report.ok()) << report.status();
  ExpectLoads();
  EXPECT_THAT(FilesIn(folder_.path()), ElementsAre("packed"));
}

TEST_F(ConvertTest, ForceReplacesModelDirectoriesOnly) {
  MakeTrainingCheckpoint(2).WriteTo(source_);
  std::filesystem::create_directory(options_.target);
  std::ofstream(options_.target + "/thesis.tex") << "years";
  options_.force = true;
  EXPECT_TRUE(absl::IsAlreadyExists(Convert().status()));
  EXPECT_EQ(Read(options_.target + "/thesis.tex"), "years");
}

TEST_F(ConvertTest, NeverReplacesItsSource) {
  MakeTrainingCheckpoint(2).WriteTo(source_);
  options_.force = true;
  for (const std::string& target :
       {source_.path(), source_.path() + "/", source_.path() + "/.",
        source_.path() + "/..", source_.path() + "/a/.."}) {
    options_.target = target;
    const absl::Status status = Convert().status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << target << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("the source"));
  }
  EXPECT_THAT(FilesIn(source_.path()),
              ElementsAre("config.json", "model.safetensors"));
}

TEST_F(ConvertTest, AnInterruptedConversionLeavesNothing) {
  MakeTrainingCheckpoint(2).WriteTo(source_);
  int num_calls = 0;
  options_.on_progress = [&](const ConvertProgress& progress) {
    EXPECT_LE(progress.bytes_read, progress.total_bytes);
    return ++num_calls < 5;
  };
  ExpectRefused(absl::StatusCode::kCancelled, "was not written");
}

TEST_F(ConvertTest, ProgressEndsWithEverythingRead) {
  MakeTrainingCheckpoint(2).WriteTo(source_);
  ConvertProgress last;
  options_.on_progress = [&](const ConvertProgress& progress) {
    last = progress;
    return true;
  };
  const auto report = Convert();
  ASSERT_TRUE(report.ok());
  EXPECT_GT(last.total_bytes, 0);
  EXPECT_EQ(last.bytes_read, last.total_bytes);
  EXPECT_EQ(report->source_bytes, last.total_bytes);
  EXPECT_GT(report->peak_anonymous_bytes, 0);
}

TEST_F(ConvertTest, AKilledConversionLeavesNothingThatLoads) {
  const TrainingCheckpoint source = MakeTrainingCheckpoint(2);
  source.WriteTo(source_);
  for (const size_t last_call : {size_t{1}, source.tensors.size()}) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      size_t num_calls = 0;
      options_.on_progress = [&](const ConvertProgress&) {
        if (++num_calls == last_call) _exit(42);
        return true;
      };
      (void)Convert();
      _exit(0);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 42);
    const std::vector<std::string> left = FilesIn(folder_.path());
    ASSERT_EQ(left.size(), 1u);
    EXPECT_THAT(left[0], HasSubstr("packed.tmp-"));
    EXPECT_FALSE(LlamaConfig::Load(folder_ / left[0]).ok());
    std::filesystem::remove_all(folder_ / left[0]);
  }
  ASSERT_TRUE(Convert().ok());
  ExpectLoads();
}

}  // namespace
}  // namespace binarymos
