// Model directories with one thing wrong each. Every error site has a case that
// makes it fire.
#include <sys/stat.h>

#include <functional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "engine/model/checkpoint.h"
#include "engine/model/llama_config.h"
#include "engine/model/weights.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/fake_backend.h"
#include "tests/engine/model/model_directory.h"

namespace binarymos {
namespace {

using ::absl::StatusCode;
using ::nlohmann::json;
using ::testing::HasSubstr;
using ::testing::TestWithParam;
using ::testing::ValuesIn;

absl::Status LoadModel(const std::string& dir) {
  const auto config = LlamaConfig::Load(dir);
  if (!config.ok()) return config.status();
  const auto checkpoint = Checkpoint::Open(dir);
  if (!checkpoint.ok()) return checkpoint.status();
  FakeBackend backend;
  return LlamaWeights::Load(*checkpoint, *config, backend).status();
}

struct MalformedCase {
  std::string name;
  // Writes the directory.
  std::function<void(const TempDir&)> write;
  StatusCode code = StatusCode::kInvalidArgument;
  std::vector<std::string> message;  // substrings
};

void PrintTo(const MalformedCase& malformed, std::ostream* out) {
  *out << malformed.name;
}

// --- config.json
// --------------------------------------------------------------

MalformedCase Config(std::string name, std::function<void(json&)> change,
                     std::vector<std::string> message,
                     StatusCode code = StatusCode::kInvalidArgument) {
  return {"Config" + name,
          [change](const TempDir& dir) {
            ModelDirectory model;
            change(model.config);
            model.WriteTo(dir);
          },
          code, std::move(message)};
}

MalformedCase ConfigValue(std::string name, std::string key, json value,
                          std::vector<std::string> message,
                          StatusCode code = StatusCode::kInvalidArgument) {
  message.push_back("config.json: " + key);
  return Config(
      std::move(name), [=](json& config) { config[key] = value; },
      std::move(message), code);
}

std::vector<MalformedCase> ConfigCases() {
  constexpr auto kUnimplemented = StatusCode::kUnimplemented;
  const json no_version = {{"quant_method", "binarymos"}, {"num_experts", 2}};
  json version_2 = no_version;
  version_2["version"] = 2;
  json experts_9 = {
      {"quant_method", "binarymos"}, {"num_experts", 9}, {"version", 1}};
  return {
      ConfigValue("HiddenSizeIsText", "hidden_size", "16",
                  {"is \"16\", expected an integer from 8 to 65536"}),
      ConfigValue("HiddenSizeIsFraction", "hidden_size", 16.5,
                  {"is 16.5, expected an integer"}),
      ConfigValue("HiddenSizeIsNegative", "hidden_size", -16,
                  {"is -16, expected an integer"}),
      ConfigValue("HiddenSizeOverflows", "hidden_size", UINT64_MAX,
                  {"is 18446744073709551615, expected an integer"}),
      ConfigValue("HiddenSizeIsNoMultipleOf8", "hidden_size", 20,
                  {"is 20, expected a multiple of 8"}),
      Config("HiddenSizeIsMissing",
             [](json& config) { config.erase("hidden_size"); },
             {"config.json: hidden_size is missing, expected an integer"}),
      ConfigValue("IntermediateSizeIsNoMultipleOf8", "intermediate_size", 25,
                  {"is 25, expected a multiple of 8"}),
      ConfigValue("TooManyLayers", "num_hidden_layers", 513,
                  {"expected an integer from 1 to 512"}),
      ConfigValue("NoVocabulary", "vocab_size", 0, {"is 0, expected"}),
      ConfigValue("NoPositions", "max_position_embeddings", 0,
                  {"is 0, expected"}),
      ConfigValue("EpsilonIsZero", "rms_norm_eps", 0, {"is 0, expected"}),
      ConfigValue("EpsilonIsText", "rms_norm_eps", "small",
                  {"is \"small\", expected a number"}),
      ConfigValue("NoHeads", "num_attention_heads", 0, {"is 0, expected"}),
      Config("HeadsDoNotDivideHidden",
             [](json& config) { config["num_attention_heads"] = 3; },
             {"hidden_size / num_attention_heads is 16 / 3"}),
      Config("KvHeadsDoNotDivideHeads",
             [](json& config) {
               config["num_attention_heads"] = 8;
               config["num_key_value_heads"] = 3;
             },
             {"num_key_value_heads is 3, expected a divisor of "
              "num_attention_heads, 8"}),
      ConfigValue("MoreKvHeadsThanHeads", "num_key_value_heads", 4,
                  {"is 4, expected an integer from 1 to 2"}),
      ConfigValue("HeadDimIsOdd", "head_dim", 7, {"expected an even number"}),
      ConfigValue("HeadDimIsTooLarge", "head_dim", 514,
                  {"expected an integer from 2 to 512"}),
      Config("QuerySizeIsNoMultipleOf8",
             [](json& config) { config["head_dim"] = 2; },
             {"num_attention_heads * head_dim is 4, expected a multiple of 8"}),
      ConfigValue("RopeThetaIsTooSmall", "rope_theta", 0.5,
                  {"is 0.5, expected a number from 1"}),
      ConfigValue("RopeScalingIsAList", "rope_scaling", json::array(),
                  {"is an array, expected an object or null"}),
      ConfigValue("RopeScalingIsUnknown", "rope_scaling",
                  {{"type", "yarn"}, {"factor", 2}},
                  {".type is \"yarn\", supported: "}, kUnimplemented),
      ConfigValue("RopeScalingWithoutFactor", "rope_scaling",
                  {{"type", "linear"}}, {".factor is missing"}),
      ConfigValue("RopeFactorBelowOne", "rope_scaling",
                  {{"type", "linear"}, {"factor", 0.5}},
                  {".factor is 0.5, expected a number from 1"}),
      ConfigValue("TyingIsANumber", "tie_word_embeddings", 1,
                  {"is 1, expected true or false"}),
      ConfigValue("ActivationIsNotSilu", "hidden_act", "gelu",
                  {"is \"gelu\", supported: \"silu\""}, kUnimplemented),
      ConfigValue("ModelTypeIsNotLlama", "model_type", "mistral",
                  {"is \"mistral\", supported: \"llama\""}, kUnimplemented),
      ConfigValue("ArchitectureIsNotLlama", "architectures",
                  {"GPT2LMHeadModel"},
                  {"is \"GPT2LMHeadModel\", supported: \"LlamaForCausalLM\""},
                  kUnimplemented),
      ConfigValue("ArchitecturesIsText", "architectures", "LlamaForCausalLM",
                  {"expected an array of strings"}),
      Config("NoArchitectureAtAll",
             [](json& config) {
               config.erase("architectures");
               config.erase("model_type");
             },
             {"model_type is null, expected \"llama\""}),
      ConfigValue("BosIsOutsideTheVocabulary", "bos_token_id", 10,
                  {"is 10, expected an integer from -1 to 9"}),
      ConfigValue("EosIsOutsideTheVocabulary", "eos_token_id", {2, 10},
                  {"is 10, expected token ids from 0 to 9"}),
      ConfigValue("QuantizationIsText", "quantization_config", "binarymos",
                  {"expected an object or null"}),
      ConfigValue("QuantizationIsUnknown", "quantization_config",
                  {{"quant_method", "gptq"}},
                  {".quant_method is \"gptq\", supported: \"binarymos\""},
                  kUnimplemented),
      ConfigValue("QuantizationWithoutMethod", "quantization_config",
                  {{"num_experts", 2}}, {".quant_method is null"}),
      ConfigValue("QuantizationWithoutVersion", "quantization_config",
                  no_version, {".version is missing"}),
      ConfigValue("QuantizationOfAnotherVersion", "quantization_config",
                  version_2,
                  {".version is 2, expected an integer from 1 to 1"}),
      ConfigValue("TooManyExperts", "quantization_config", experts_9,
                  {".num_experts is 9, expected an integer from 1 to 8"}),
      Config("IsATrainingCheckpoint",
             [](json& config) {
               config.erase("quantization_config");
               config["num_expert"] = 4;
             },
             {"run `binarymos convert`"}),
      {"ConfigIsMissing",
       [](const TempDir& dir) {
         ModelDirectory().WriteTo(dir);
         std::filesystem::remove(dir / "config.json");
       },
       StatusCode::kNotFound,
       {"config.json: No such file"}},
      {"ConfigIsADirectory",
       [](const TempDir& dir) {
         std::filesystem::create_directory(dir / "config.json");
       },
       StatusCode::kInvalidArgument,
       {"config.json is a directory, expected a regular file"}},
      {"ConfigIsNotJson",
       [](const TempDir& dir) { dir.Write("config.json", "hidden_size: 4"); },
       StatusCode::kInvalidArgument,
       {"config.json: not valid JSON: at byte 1"}},
      {"ConfigHasAKeyTwice",
       [](const TempDir& dir) {
         dir.Write("config.json", R"({"vocab_size": 1, "vocab_size": 2})");
       },
       StatusCode::kInvalidArgument,
       {"config.json: not valid JSON: key \"vocab_size\" stands twice"}},
      {"ConfigIsHuge",
       [](const TempDir& dir) {
         dir.Write("config.json", "");
         std::filesystem::resize_file(dir / "config.json", 17 << 20);
       },
       StatusCode::kInvalidArgument,
       {"config.json has 17825792 bytes, expected at most 16777216"}},
      {"GenerationConfigIsNotJson",
       [](const TempDir& dir) {
         ModelDirectory().WriteTo(dir);
         dir.Write("generation_config.json", "[");
       },
       StatusCode::kInvalidArgument,
       {"generation_config.json: not valid JSON"}},
      {"GenerationConfigNamesAnotherVocabulary",
       [](const TempDir& dir) {
         ModelDirectory().WriteTo(dir);
         dir.Write("generation_config.json", R"({"eos_token_id": 99})");
       },
       StatusCode::kInvalidArgument,
       {"generation_config.json: eos_token_id is 99"}},
  };
}

// --- model.safetensors
// --------------------------------------------------------

// The whole file is `content`.
MalformedCase File(std::string name, std::string content,
                   std::vector<std::string> message) {
  message.push_back("model.safetensors");
  return {"File" + name,
          [content](const TempDir& dir) {
            ModelDirectory().WriteTo(dir);
            dir.Write("model.safetensors", content);
          },
          StatusCode::kInvalidArgument, std::move(message)};
}

// `change` works on the header of a sound file; the data stay.
MalformedCase Header(std::string name, std::function<void(json&)> change,
                     std::vector<std::string> message) {
  message.push_back("model.safetensors: ");
  return {"Header" + name,
          [change](const TempDir& dir) {
            ModelDirectory model;
            model.WriteTo(dir);
            json header = HeaderOf(model.tensors);
            change(header);
            dir.Write(
                "model.safetensors",
                SafetensorsFile(PaddedHeader(header), DataOf(model.tensors)));
          },
          StatusCode::kInvalidArgument, std::move(message)};
}

// `change` works on one entry of the header.
MalformedCase Entry(std::string name, std::function<void(json&)> change,
                    std::vector<std::string> message) {
  constexpr char kTensor[] = "lm_head.weight";
  message.push_back("tensor \"lm_head.weight\"");
  return Header(
      std::move(name), [=](json& header) { change(header[kTensor]); },
      std::move(message));
}

std::string LengthPrefix(uint64_t length) {
  std::string prefix(sizeof(length), '\0');
  std::memcpy(prefix.data(), &length, sizeof(length));
  return prefix;
}

// Moves the offsets of lm_head.weight, which lie at 352 to 672.
std::function<void(json&)> Offsets(json begin, json end) {
  return [=](json& entry) { entry["data_offsets"] = {begin, end}; };
}

std::vector<MalformedCase> FileCases() {
  const std::string sound = Serialize(ModelDirectory().tensors);
  const std::string one = R"("dtype":"U8","shape":[1],"data_offsets":[0,1])";
  const std::string deep = "{\"a\":" + std::string(100, '[');
  return {
      File("IsEmpty", "", {"is empty, expected a safetensors file"}),
      File("IsShorterThanALength", "1234567", {"has 7 bytes, expected"}),
      File("HeaderIsHuge", LengthPrefix(100'000'001) + "{}",
           {"header length is 100000001, expected at most 100000000"}),
      File("HeaderLengthIsMax", LengthPrefix(UINT64_MAX) + "{}",
           {"header length is 18446744073709551615, expected at most"}),
      File("HeaderLeavesTheFile", LengthPrefix(3) + "{}",
           {"header length is 3, but only 2 bytes follow", "truncated"}),
      File("HeaderIsEmpty", LengthPrefix(0) + "{}",
           {"does not begin with '{'"}),
      File("HeaderIsAList", SafetensorsFile("[]", ""),
           {"does not begin with '{'"}),
      File("HeaderIsNotJson", SafetensorsFile("{\"a\":}", ""),
           {"header: not valid JSON: at byte"}),
      File("HeaderIsNotUtf8", SafetensorsFile("{\"\xff\":{}}", ""),
           {"header: not valid JSON"}),
      File("HeaderIsNestedDeeply", SafetensorsFile(deep, ""),
           {"header: not valid JSON: nested deeper"}),
      File("HeaderNamesATensorTwice",
           SafetensorsFile("{\"a\":{" + one + "},\"a\":{" + one + "}}", "x"),
           {"key \"a\" stands twice"}),
      File("HeaderHasAKeyTwice",
           SafetensorsFile(R"({"a":{"dtype":"U8","dtype":"U8","shape":[1]}})",
                           "x"),
           {"key \"dtype\" stands twice"}),
      File("IsTruncated", sound.substr(0, sound.size() - 1),
           {"tensor \"", "leave the file"}),
      File("HasBytesLeft", sound + "x", {"expected them to fill the file"}),
      File("IsMisaligned",
           SafetensorsFile(
               R"({"b":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}} )",
               "xx"),
           {"tensor \"b\" begins at byte ", "expected a multiple of 2"}),
      Header("MetadataIsText",
             [](json& header) { header["__metadata__"] = "pt"; },
             {"__metadata__: expected an object of strings"}),
      Header("MetadataHoldsNumbers",
             [](json& header) {
               header["__metadata__"] = {{"a", 1}};
             },
             {"__metadata__: expected an object of strings"}),
      Header("TensorIsNoObject", [](json& header) { header["x"] = 1; },
             {"tensor \"x\": expected an object"}),
      Header("TensorHasNoName",
             [](json& header) { header[""] = json::object(); },
             {"tensor \"\": expected a name of 1 to 512 bytes"}),
      Header(
          "TensorNameIsLong",
          [](json& header) { header[std::string(513, 'x')] = json::object(); },
          {"expected a name of 1 to 512 bytes"}),
      Entry("HasAnUnknownKey", [](json& entry) { entry["strides"] = 1; },
            {"unknown key \"strides\""}),
      Entry("HasNoDType", [](json& entry) { entry.erase("dtype"); },
            {"expected a string as dtype"}),
      Entry("HasAnUnknownDType", [](json& entry) { entry["dtype"] = "F17"; },
            {"unknown dtype \"F17\", expected one of"}),
      Entry("HasNoShape", [](json& entry) { entry.erase("shape"); },
            {"expected an array as shape"}),
      Entry("HasFiveDimensions",
            [](json& entry) {
              entry["shape"] = {1, 1, 1, 10, 16};
            },
            {"shape has 5 dimensions, expected at most 4"}),
      Entry("HasANegativeDimension",
            [](json& entry) {
              entry["shape"] = {-10, -16};
            },
            {"shape[0]: expected an integer from 0"}),
      Entry("HasAFractionalDimension",
            [](json& entry) {
              entry["shape"] = {10, 16.0};
            },
            {"shape[1]: expected an integer from 0"}),
      Entry("HasADimensionAbove2To63",
            [](json& entry) {
              entry["shape"] = {UINT64_MAX, 16};
            },
            {"shape[0]: expected an integer from 0 to 2^63 - 1"}),
      Entry("HasAShapeThatOverflows",
            // 2^33 * 2^31 * 2 bytes is 2^65, which would wrap to 0.
            [](json& entry) {
              entry["shape"] = {int64_t{1} << 33, int64_t{1} << 31};
            },
            {"the shape's size overflows"}),
      Entry("HasNoOffsets", [](json& entry) { entry.erase("data_offsets"); },
            {"expected two integers of at least 0 as data_offsets"}),
      Entry("HasThreeOffsets",
            [](json& entry) {
              entry["data_offsets"] = {1, 2, 3};
            },
            {"expected two integers of at least 0 as data_offsets"}),
      Entry("HasANegativeOffset", Offsets(-1, 319),
            {"expected two integers of at least 0 as data_offsets"}),
      Entry("HasFractionalOffsets", Offsets(352.0, 672.0),
            {"expected two integers of at least 0 as data_offsets"}),
      Entry("RunsBackwards", Offsets(672, 352),
            {"data_offsets 672 to 352 run backwards"}),
      Entry("LeavesTheFile", Offsets(352, 1 << 20), {"leave the file"}),
      Entry("EndsAtMax", Offsets(352, UINT64_MAX), {"leave the file"}),
      Entry("IsShorterThanItsShape", Offsets(352, 670),
            {"hold 318 bytes, expected 320 for F16 [10, 16]"}),
      Entry("OverlapsItsNeighbour", Offsets(350, 670),
            {"begins at 350, expected 352: it overlaps"}),
      Header("LeavesAHole",
             [](json& header) { header.erase("lm_head.weight"); },
             {"it leaves a hole after \"model.norm.weight\""}),
  };
}

// --- Places of the files
// --------------------------------------------------------

std::vector<MalformedCase> PlaceCases() {
  return {
      {"PlaceHasNoTensors",
       [](const TempDir& dir) {
         ModelDirectory().WriteTo(dir);
         std::filesystem::remove(dir / "model.safetensors");
       },
       StatusCode::kNotFound,
       {"has neither model.safetensors nor model.safetensors.index.json"}},
      {"PlaceHoldsADirectory",
       [](const TempDir& dir) {
         ModelDirectory().WriteTo(dir);
         std::filesystem::remove(dir / "model.safetensors");
         std::filesystem::create_directory(dir / "model.safetensors");
       },
       StatusCode::kInvalidArgument,
       {"model.safetensors is a directory, expected a regular file"}},
      {"PlaceHoldsAFifo",
       [](const TempDir& dir) {
         ModelDirectory().WriteTo(dir);
         std::filesystem::remove(dir / "model.safetensors");
         ASSERT_EQ(mkfifo((dir / "model.safetensors").c_str(), 0600), 0);
       },
       StatusCode::kInvalidArgument,
       {"model.safetensors is a FIFO, expected a regular file"}},
  };
}

// --- Shards
// -------------------------------------------------------------------

// Two shards "a" and "b" of a sound model, and an index; `change` sees all.
struct Shards {
  json index;
  std::vector<TestTensor> a;
  std::vector<TestTensor> b;
};

Shards SoundShards() {
  const ModelDirectory model;
  Shards shards;
  shards.index["metadata"] = {{"total_size", 1}};
  for (const TestTensor& tensor : model.tensors) {
    const bool in_a = shards.a.size() < 8;
    (in_a ? shards.a : shards.b).push_back(tensor);
    shards.index["weight_map"][tensor.name] =
        in_a ? "a.safetensors" : "b.safetensors";
  }
  return shards;
}

void WriteShards(const Shards& shards, const TempDir& dir) {
  ModelDirectory().WriteTo(dir);
  std::filesystem::remove(dir / "model.safetensors");
  dir.Write("model.safetensors.index.json", shards.index.dump());
  dir.Write("a.safetensors", Serialize(shards.a));
  dir.Write("b.safetensors", Serialize(shards.b));
}

MalformedCase Sharded(std::string name, std::function<void(Shards&)> change,
                      std::vector<std::string> message,
                      StatusCode code = StatusCode::kInvalidArgument) {
  return {"Shards" + name,
          [change](const TempDir& dir) {
            Shards shards = SoundShards();
            change(shards);
            WriteShards(shards, dir);
          },
          code, std::move(message)};
}

MalformedCase ShardPath(std::string name, json path) {
  return Sharded(
      "Path" + std::move(name),
      [path](Shards& shards) {
        shards.index["weight_map"]["lm_head.weight"] = path;
      },
      {"index.json: weight_map: tensor \"lm_head.weight\": expected a plain "
       "file name"});
}

std::vector<MalformedCase> ShardCases() {
  return {
      ShardPath("HasASlash", "sub/a.safetensors"),
      ShardPath("IsAbsolute", "/etc/passwd"),
      ShardPath("IsTheParent", ".."),
      ShardPath("IsEmpty", ""),
      ShardPath("IsANumber", 1),
      ShardPath("IsLong", std::string(256, 'x')),
      Sharded("IndexHasNoMap",
              [](Shards& shards) { shards.index.erase("weight_map"); },
              {"index.json: weight_map: expected an object"}),
      Sharded(
          "IndexMapIsEmpty",
          [](Shards& shards) { shards.index["weight_map"] = json::object(); },
          {"index.json: weight_map: expected an object"}),
      Sharded("AreTooMany",
              [](Shards& shards) {
                for (int i = 0; i < 1000; ++i) {
                  const std::string name = std::to_string(i);
                  shards.index["weight_map"][name] = name;
                }
              },
              {"weight_map names 1002 files, expected at most 1000"}),
      Sharded(
          "AreIncomplete",
          [](Shards& shards) {
            shards.index["weight_map"]["x"] = "c.safetensors";
          },
          {"c.safetensors: No such file"}, StatusCode::kNotFound),
      Sharded("LackATensor",
              [](Shards& shards) {
                shards.index["weight_map"]["x"] = "b.safetensors";
              },
              {"b.safetensors: tensor \"x\" is missing", "index.json"}),
      Sharded("HoldATensorInTheWrongFile",
              [](Shards& shards) {
                shards.index["weight_map"]["lm_head.weight"] = "b.safetensors";
              },
              {"b.safetensors: tensor \"lm_head.weight\" is missing"}),
      Sharded("HoldATensorTwice",
              [](Shards& shards) { shards.b.push_back(shards.a[2]); },
              {"b.safetensors: tensor \"lm_head.weight\" is also in",
               "a.safetensors"}),
      Sharded("HoldATensorThatTheIndexLacks",
              [](Shards& shards) {
                shards.index["weight_map"].erase("lm_head.weight");
              },
              {"a.safetensors: tensor \"lm_head.weight\" is not named in"}),
  };
}

// --- Tensors of the model
// ---------------------------------------------------------

MalformedCase Model(std::string name,
                    std::function<void(ModelDirectory&)> change,
                    std::vector<std::string> message) {
  message.push_back("model.safetensors");
  return {"Model" + name,
          [change](const TempDir& dir) {
            ModelDirectory model;
            change(model);
            model.WriteTo(dir);
          },
          StatusCode::kInvalidArgument, std::move(message)};
}

MalformedCase Missing(std::string name, std::string tensor,
                      std::string expected) {
  MalformedCase malformed =
      Model("Lacks" + std::move(name),
            [=](ModelDirectory& model) { model.Remove(tensor); },
            {"tensor \"" + tensor + "\" is missing, expected " + expected});
  malformed.message.pop_back();  // no file holds it: the directory is named
  return malformed;
}

MalformedCase Shaped(std::string name, std::string tensor,
                     std::vector<int64_t> shape, std::string message) {
  return Model(
      "Shape" + std::move(name),
      [=](ModelDirectory& model) { model.tensor(tensor).shape = shape; },
      {"tensor \"" + tensor + "\" is " + message});
}

std::vector<MalformedCase> ModelCases() {
  const std::string q = "model.layers.0.self_attn.q_proj";
  const std::string down = "model.layers.0.mlp.down_proj";
  return {
      Missing("Embedding", "model.embed_tokens.weight", "F16 [10, 16]"),
      Missing("Head", "lm_head.weight", "F16 [10, 16]"),
      Missing("FinalNorm", "model.norm.weight", "F16 [16]"),
      Missing("InputNorm", "model.layers.0.input_layernorm.weight", "F16 [16]"),
      Missing("PostAttentionNorm",
              "model.layers.0.post_attention_layernorm.weight", "F16 [16]"),
      Missing("Sign", q + ".sign", "U8 [16, 2]"),
      Missing("Gate", q + ".gate", "F16 [2, 16]"),
      Missing("InScale", down + ".in_scale", "F16 [2, 24]"),
      Missing("OutScale", down + ".out_scale", "F16 [2, 16]"),
      Shaped("OfEmbedding", "model.embed_tokens.weight", {11, 16},
             "F16 [11, 16], expected F16 [10, 16]"),
      Shaped("HasAnExtraDimension", "model.norm.weight", {1, 16},
             "F16 [1, 16], expected F16 [16]"),
      Shaped("IsTransposed", down + ".sign", {3, 16},
             "U8 [3, 16], expected U8 [16, 3]"),
      Shaped("OfGate", q + ".gate", {3, 16}, "F16 [3, 16], expected F16 [2"),
      Shaped("OfInScale", q + ".in_scale", {2, 18}, "F16 [2, 18], expected"),
      Shaped("OfOutScale", q + ".out_scale", {2, 18}, "F16 [2, 18], expected"),
      Model("HasAFloat32Embedding",
            [](ModelDirectory& model) {
              model.tensor("model.embed_tokens.weight").dtype = "F32";
            },
            {"is F32 [10, 16], expected F16 [10, 16]"}),
      Model("HasABFloat16Head",
            [](ModelDirectory& model) {
              model.tensor("lm_head.weight").dtype = "BF16";
              model.tensor("lm_head.weight").shape = {5, 16};
            },
            {"is BF16 [5, 16], expected F16 [10, 16]"}),
      Model("HasASuperfluousTensor",
            [](ModelDirectory& model) {
              model.tensors.push_back({"model.layers.1.x", "U8", {1}});
            },
            {"tensor \"model.layers.1.x\" is not expected in this model"}),
      Model("HasASuperfluousBias",
            [&](ModelDirectory& model) {
              model.tensors.push_back(
                  {"model.layers.0.self_attn.q_proj.bias", "F16", {16}});
            },
            {"q_proj.bias\" is not expected: config.json has no such bias"}),
      Model("LacksABias",
            [](ModelDirectory& model) {
              model.config["mlp_bias"] = true;
              model.tensors.push_back(
                  {"model.layers.0.mlp.gate_proj.bias", "F16", {23}});
            },
            {"gate_proj.bias\" is F16 [23], expected F16 [24]"}),
      Model(
          "HasATiedHeadThatDiffers",
          [](ModelDirectory& model) {
            model.config["tie_word_embeddings"] = true;
          },
          {"tensor \"lm_head.weight\" differs from model.embed_tokens.weight"}),
      Model("IsFloat16WithSigns",
            [](ModelDirectory& model) {
              model.MakeFloat16();
              model.tensors.push_back(
                  {"model.layers.0.mlp.up_proj.sign", "U8", {24, 2}});
            },
            {"up_proj.sign\" is not expected"}),
      Model("IsFloat16OfAnotherShape",
            [](ModelDirectory& model) {
              model.MakeFloat16();
              model.tensor("model.layers.0.mlp.up_proj.weight").shape = {24, 8};
            },
            {"up_proj.weight\" is F16 [24, 8], expected F16 [24, 16]"}),
  };
}

// --- All of them
// ------------------------------------------------------------------

std::vector<MalformedCase> AllCases() {
  std::vector<MalformedCase> all;
  for (const auto& cases :
       {ConfigCases(), FileCases(), PlaceCases(), ShardCases(), ModelCases()}) {
    all.insert(all.end(), cases.begin(), cases.end());
  }
  return all;
}

class MalformedModelTest : public TestWithParam<MalformedCase> {};

TEST_P(MalformedModelTest, IsRefusedWithTheDocumentedStatus) {
  const TempDir dir;
  ASSERT_NO_FATAL_FAILURE(GetParam().write(dir));
  const absl::Status status = LoadModel(dir.path());
  EXPECT_EQ(status.code(), GetParam().code) << status;
  for (const std::string& part : GetParam().message) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(part));
  }
}

INSTANTIATE_TEST_SUITE_P(All, MalformedModelTest, ValuesIn(AllCases()),
                         [](const auto& test) { return test.param.name; });

TEST(MalformedModelsTest, TheModelThatTheyStartFromIsSound) {
  const TempDir single;
  ModelDirectory().WriteTo(single);
  EXPECT_EQ(LoadModel(single.path()), absl::OkStatus());
  const TempDir sharded;
  WriteShards(SoundShards(), sharded);
  EXPECT_EQ(LoadModel(sharded.path()), absl::OkStatus());
}

// --- Damage at random
// -------------------------------------------------------------

// Opens `file` and touches every byte of every tensor that it claims to have.
void OpenAndRead(const TempDir& dir, const std::string& file) {
  dir.Write("model.safetensors", file);
  const auto checkpoint = Checkpoint::Open(dir.path());
  if (!checkpoint.ok()) {
    EXPECT_FALSE(checkpoint.status().message().empty());
    return;
  }
  size_t sum = 0;
  for (const auto& [name, entry] : checkpoint->tensors()) {
    const auto* bytes = static_cast<const uint8_t*>(entry.data);
    for (size_t i = 0; i < entry.bytes; ++i) sum += bytes[i];
  }
  EXPECT_LE(sum, 255 * file.size());
}

TEST(DamagedCheckpointTest, FlippedBitsOfTheHeaderNeverCrash) {
  const TempDir dir;
  const std::string sound = Serialize(ModelDirectory().tensors);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, sound.data(), sizeof(header_bytes));
  std::mt19937 random(1);
  for (int i = 0; i < 600; ++i) {
    std::string damaged = sound;
    for (int flips = 1 + i % 3; flips > 0; --flips) {
      damaged[random() % (8 + header_bytes)] ^=
          static_cast<char>(1 << random() % 8);
    }
    OpenAndRead(dir, damaged);
  }
}

TEST(DamagedCheckpointTest, TruncationNeverCrashes) {
  const TempDir dir;
  const std::string sound = Serialize(ModelDirectory().tensors);
  for (size_t size = 0; size < sound.size(); size += 23) {
    dir.Write("model.safetensors", sound.substr(0, size));
    EXPECT_FALSE(Checkpoint::Open(dir.path()).ok()) << size;
  }
}

}  // namespace
}  // namespace binarymos
