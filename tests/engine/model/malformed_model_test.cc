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

// --- config.json ---

// `patch` is merged into a sound configuration; null removes a key.
MalformedCase Config(std::string name, const char* patch,
                     std::vector<std::string> message,
                     StatusCode code = StatusCode::kInvalidArgument) {
  for (std::string& part : message) part = "config.json: " + part;
  return {"Config" + name,
          [patch](const TempDir& dir) {
            ModelDirectory model;
            model.config.merge_patch(json::parse(patch));
            model.WriteTo(dir);
          },
          code, std::move(message)};
}

MalformedCase Unsupported(std::string name, const char* patch,
                          std::string message) {
  return Config(std::move(name), patch, {std::move(message)},
                StatusCode::kUnimplemented);
}

// config.json is `content`.
MalformedCase ConfigFile(std::string name, std::string content,
                         std::string message) {
  return {"ConfigFile" + name,
          [content](const TempDir& dir) { dir.Write("config.json", content); },
          StatusCode::kInvalidArgument,
          {"config.json", std::move(message)}};
}

MalformedCase GenerationConfig(std::string name, std::string content,
                               std::string message) {
  return {"GenerationConfig" + name,
          [content](const TempDir& dir) {
            ModelDirectory().WriteTo(dir);
            dir.Write("generation_config.json", content);
          },
          StatusCode::kInvalidArgument,
          {"generation_config.json: " + message}};
}

std::vector<MalformedCase> ConfigCases() {
  return {
      Config("HiddenSizeIsText", R"({"hidden_size": "16"})",
             {"hidden_size is \"16\", expected an integer from 8 to 65536"}),
      Config("HiddenSizeIsFraction", R"({"hidden_size": 16.5})",
             {"hidden_size is 16.5, expected an integer"}),
      Config("HiddenSizeIsNegative", R"({"hidden_size": -16})",
             {"hidden_size is -16, expected an integer"}),
      Config("HiddenSizeOverflows", R"({"hidden_size": 18446744073709551615})",
             {"hidden_size is 18446744073709551615, expected an integer"}),
      Config("HiddenSizeIsNoMultipleOf8", R"({"hidden_size": 20})",
             {"hidden_size is 20, expected a multiple of 8"}),
      Config("HiddenSizeIsMissing", R"({"hidden_size": null})",
             {"hidden_size is missing, expected an integer from 8 to 65536"}),
      Config("IntermediateSizeIsNoMultipleOf8", R"({"intermediate_size": 25})",
             {"intermediate_size is 25, expected a multiple of 8"}),
      Config("TooManyLayers", R"({"num_hidden_layers": 513})",
             {"num_hidden_layers is 513, expected an integer from 1 to 512"}),
      Config("NoVocabulary", R"({"vocab_size": 0})",
             {"vocab_size is 0, expected"}),
      Config("NoPositions", R"({"max_position_embeddings": 0})",
             {"max_position_embeddings is 0, expected"}),
      Config("EpsilonIsZero", R"({"rms_norm_eps": 0})",
             {"rms_norm_eps is 0, expected a number"}),
      Config("EpsilonIsText", R"({"rms_norm_eps": "small"})",
             {"rms_norm_eps is \"small\", expected a number"}),
      Config("NoHeads", R"({"num_attention_heads": 0})",
             {"num_attention_heads is 0, expected"}),
      Config("HeadsDoNotDivideHidden", R"({"num_attention_heads": 3})",
             {"hidden_size / num_attention_heads is 16 / 3, expected a whole "
              "number from 2 to 512"}),
      Config("KvHeadsDoNotDivideHeads",
             R"({"num_attention_heads": 8, "num_key_value_heads": 3})",
             {"num_key_value_heads is 3, expected a divisor of "
              "num_attention_heads, 8"}),
      Config("MoreKvHeadsThanHeads", R"({"num_key_value_heads": 4})",
             {"num_key_value_heads is 4, expected an integer from 1 to 2"}),
      Config("HeadDimIsOdd", R"({"head_dim": 7})",
             {"head_dim is 7, expected an even number"}),
      Config("HeadDimIsTooLarge", R"({"head_dim": 514})",
             {"head_dim is 514, expected an integer from 2 to 512"}),
      Config("QuerySizeIsNoMultipleOf8", R"({"head_dim": 2})",
             {"num_attention_heads * head_dim is 4, expected a multiple"}),
      Config("RopeThetaIsTooSmall", R"({"rope_theta": 0.5})",
             {"rope_theta is 0.5, expected a number from 1"}),
      Config("RopeScalingIsAList", R"({"rope_scaling": []})",
             {"rope_scaling is an array, expected an object or null"}),
      Config("RopeTypeIsANumber", R"({"rope_scaling": {"type": 1}})",
             {"rope_scaling.type is 1, expected a string"}),
      Unsupported("RopeScalingIsUnknown",
                  R"({"rope_scaling": {"type": "yarn", "factor": 2}})",
                  "rope_scaling.type is \"yarn\", supported: "),
      Config("RopeScalingWithoutFactor",
             R"({"rope_scaling": {"type": "linear"}})",
             {"rope_scaling.factor is missing"}),
      Config("RopeFactorBelowOne",
             R"({"rope_parameters": {"rope_type": "linear", "factor": 0.5}})",
             {"rope_parameters.factor is 0.5, expected a number from 1"}),
      Config("TyingIsANumber", R"({"tie_word_embeddings": 1})",
             {"tie_word_embeddings is 1, expected true or false"}),
      Unsupported("ActivationIsNotSilu", R"({"hidden_act": "gelu"})",
                  "hidden_act is \"gelu\", supported: \"silu\""),
      Unsupported("ModelTypeIsNotLlama", R"({"model_type": "mistral"})",
                  "model_type is \"mistral\", supported: \"llama\""),
      Unsupported("ArchitectureIsNotLlama",
                  R"({"architectures": ["GPT2LMHeadModel"]})",
                  "architectures is \"GPT2LMHeadModel\", supported: "
                  "\"LlamaForCausalLM\""),
      Config("ArchitecturesIsText", R"({"architectures": "Llama"})",
             {"architectures is \"Llama\", expected an array of strings"}),
      Config("NoArchitectureAtAll",
             R"({"architectures": null, "model_type": null})",
             {"model_type is null, expected \"llama\""}),
      Config("BosIsOutsideTheVocabulary", R"({"bos_token_id": 10})",
             {"bos_token_id is 10, expected an integer from -1 to 9"}),
      Config("EosIsOutsideTheVocabulary", R"({"eos_token_id": [2, 10]})",
             {"eos_token_id is 10, expected token ids from 0 to 9"}),
      Config("QuantizationIsText", R"({"quantization_config": "binarymos"})",
             {"quantization_config is \"binarymos\", expected an object"}),
      Unsupported("QuantizationIsUnknown",
                  R"({"quantization_config": {"quant_method": "gptq"}})",
                  "quantization_config.quant_method is \"gptq\", supported: "
                  "\"binarymos\""),
      Config("QuantizationWithoutMethod",
             R"({"quantization_config": {"quant_method": null}})",
             {"quantization_config.quant_method is null, expected"}),
      Config("QuantizationWithoutVersion",
             R"({"quantization_config": {"version": null}})",
             {"quantization_config.version is missing, expected"}),
      Config("QuantizationOfAnotherVersion",
             R"({"quantization_config": {"version": 2}})",
             {"quantization_config.version is 2, expected"}),
      Config("TooManyExperts", R"({"quantization_config": {"num_experts": 9}})",
             {"quantization_config.num_experts is 9, expected an integer from "
              "1 to 8"}),
      Config("IsATrainingCheckpoint",
             R"({"quantization_config": null, "num_expert": 4})",
             {"num_expert without quantization_config: this is a training "
              "checkpoint with latent weights; run `binarymos convert`"}),
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
      ConfigFile("IsNotJson", "hidden_size: 4", "not valid JSON: at byte 1"),
      ConfigFile("HasAKeyTwice", R"({"vocab_size": 1, "vocab_size": 2})",
                 "not valid JSON: key \"vocab_size\" stands twice"),
      ConfigFile("IsAList", "[]", "expected a JSON object at the root"),
      ConfigFile("IsHuge", std::string((16 << 20) + 1, ' '),
                 "has 16777217 bytes, expected at most 16777216"),
      GenerationConfig("IsNotJson", "[", "not valid JSON"),
      GenerationConfig("NamesAnotherVocabulary", R"({"eos_token_id": 99})",
                       "eos_token_id is 99, expected token ids from 0 to 9"),
  };
}

// --- model.safetensors ---

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

// `patch` is merged into the header of a sound file; the data stay.
MalformedCase Header(std::string name, std::string patch, std::string message) {
  return {"Header" + name,
          [patch](const TempDir& dir) {
            ModelDirectory model;
            model.WriteTo(dir);
            json header = HeaderOf(model.tensors);
            header.merge_patch(json::parse(patch));
            dir.Write(
                "model.safetensors",
                SafetensorsFile(PaddedHeader(header), DataOf(model.tensors)));
          },
          StatusCode::kInvalidArgument,
          {"model.safetensors: ", std::move(message)}};
}

// `patch` is merged into the entry of lm_head.weight, F16 [10, 16], whose bytes
// are 352 to 672.
MalformedCase Entry(std::string name, const std::string& patch,
                    const std::string& message) {
  return Header("Entry" + name, R"({"lm_head.weight": )" + patch + "}",
                "tensor \"lm_head.weight\"" + message);
}

std::string LengthPrefix(uint64_t length) {
  std::string prefix(sizeof(length), '\0');
  std::memcpy(prefix.data(), &length, sizeof(length));
  return prefix;
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
      Header("MetadataIsText", R"({"__metadata__": "pt"})",
             "__metadata__: expected an object of strings"),
      Header("MetadataHoldsNumbers", R"({"__metadata__": {"a": 1}})",
             "__metadata__: expected an object of strings"),
      Header("TensorIsNoObject", R"({"x": 1})",
             "tensor \"x\": expected an object"),
      Header("TensorHasNoName", R"({"": {}})",
             "tensor \"\": expected a name of 1 to 512 bytes"),
      Header("TensorNameIsLong", "{\"" + std::string(513, 'x') + "\": {}}",
             "expected a name of 1 to 512 bytes"),
      Header("LeavesAHole", R"({"lm_head.weight": null})",
             "it leaves a hole after \"model.norm.weight\""),
      Entry("HasAnUnknownKey", R"({"strides": 1})",
            ": unknown key \"strides\""),
      Entry("HasNoDType", R"({"dtype": null})", ": expected a string as dtype"),
      Entry("HasAnUnknownDType", R"({"dtype": "F17"})",
            ": unknown dtype \"F17\", expected one of"),
      Entry("HasNoShape", R"({"shape": null})", ": expected an array as shape"),
      Entry("HasFiveDimensions", R"({"shape": [1, 1, 1, 10, 16]})",
            ": shape has 5 dimensions, expected at most 4"),
      Entry("HasANegativeDimension", R"({"shape": [-10, -16]})",
            ": shape[0]: expected an integer from 0"),
      Entry("HasAFractionalDimension", R"({"shape": [10, 16.0]})",
            ": shape[1]: expected an integer from 0"),
      Entry("HasADimensionAbove2To63",
            R"({"shape": [18446744073709551615, 16]})",
            ": shape[0]: expected an integer from 0 to 2^63 - 1"),
      // 2^33 * 2^31 * 2 bytes is 2^65, which would wrap to 0.
      Entry("HasAShapeThatOverflows", R"({"shape": [8589934592, 2147483648]})",
            ": the shape's size overflows"),
      Entry("HasNoOffsets", R"({"data_offsets": null})",
            ": expected two integers of at least 0 as data_offsets"),
      Entry("HasThreeOffsets", R"({"data_offsets": [1, 2, 3]})",
            ": expected two integers of at least 0 as data_offsets"),
      Entry("HasANegativeOffset", R"({"data_offsets": [-1, 319]})",
            ": expected two integers of at least 0 as data_offsets"),
      Entry("HasFractionalOffsets", R"({"data_offsets": [352.0, 672.0]})",
            ": expected two integers of at least 0 as data_offsets"),
      Entry("RunsBackwards", R"({"data_offsets": [672, 352]})",
            ": data_offsets 672 to 352 run backwards"),
      Entry("LeavesTheFile", R"({"data_offsets": [352, 1048576]})",
            ": data_offsets 352 to 1048576 leave the file"),
      Entry("EndsAtMax", R"({"data_offsets": [352, 18446744073709551615]})",
            ": data_offsets 352 to 18446744073709551615 leave the file"),
      Entry("IsShorterThanItsShape", R"({"data_offsets": [352, 670]})",
            ": data_offsets hold 318 bytes, expected 320 for F16 [10, 16]"),
      Entry("OverlapsItsNeighbour", R"({"data_offsets": [350, 670]})",
            " begins at 350, expected 352: it overlaps"),
  };
}

// --- Places of the files ---

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

// --- Shards ---

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

// `patch` is merged into a sound index; `change`, if any, works on the shards.
MalformedCase Sharded(std::string name, std::string patch,
                      std::vector<std::string> message,
                      StatusCode code = StatusCode::kInvalidArgument,
                      void (*change)(Shards&) = nullptr) {
  return {"Shards" + name,
          [patch, change](const TempDir& dir) {
            Shards shards = SoundShards();
            shards.index.merge_patch(json::parse(patch));
            if (change != nullptr) change(shards);
            WriteShards(shards, dir);
          },
          code, std::move(message)};
}

// The index says that tensor `name` is in file `path` (a JSON value).
std::string InFile(const std::string& name, const std::string& path) {
  return "{\"weight_map\": {\"" + name + "\": " + path + "}}";
}

MalformedCase ShardPath(std::string name, const std::string& path) {
  return Sharded("Path" + name, InFile("lm_head.weight", path),
                 {"index.json: weight_map: tensor \"lm_head.weight\": expected "
                  "a plain file name"});
}

std::vector<MalformedCase> ShardCases() {
  return {
      ShardPath("HasASlash", "\"sub/a.safetensors\""),
      ShardPath("IsAbsolute", "\"/etc/passwd\""),
      ShardPath("IsTheParent", "\"..\""),
      ShardPath("IsEmpty", "\"\""),
      ShardPath("IsANumber", "1"),
      ShardPath("IsLong", "\"" + std::string(256, 'x') + "\""),
      Sharded("IndexHasNoMap", R"({"weight_map": null})",
              {"index.json: weight_map: expected an object"}),
      Sharded("IndexMapIsAList", R"({"weight_map": []})",
              {"index.json: weight_map: expected an object"}),
      Sharded("AreTooMany", "{}",
              {"weight_map names 1002 files, expected at most 1000"},
              StatusCode::kInvalidArgument,
              [](Shards& shards) {
                for (int i = 0; i < 1000; ++i) {
                  const std::string file = std::to_string(i);
                  shards.index["weight_map"][file] = file;
                }
              }),
      Sharded("AreIncomplete", InFile("x", "\"c.safetensors\""),
              {"c.safetensors: No such file"}, StatusCode::kNotFound),
      Sharded("LackATensor", InFile("x", "\"b.safetensors\""),
              {"b.safetensors: tensor \"x\" is missing", "index.json"}),
      Sharded("HoldATensorInTheWrongFile",
              InFile("lm_head.weight", "\"b.safetensors\""),
              {"b.safetensors: tensor \"lm_head.weight\" is missing"}),
      Sharded("HoldATensorTwice", "{}",
              {"b.safetensors: tensor \"lm_head.weight\" is also in",
               "a.safetensors"},
              StatusCode::kInvalidArgument,
              [](Shards& shards) { shards.b.push_back(shards.a[2]); }),
      Sharded("HoldATensorThatTheIndexLacks", InFile("lm_head.weight", "null"),
              {"a.safetensors: tensor \"lm_head.weight\" is not named in"}),
  };
}

// --- Tensors of the model ---

MalformedCase Model(std::string name, void (*change)(ModelDirectory&),
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
                      const std::string& expected) {
  return {"ModelLacks" + name,
          [tensor](const TempDir& dir) {
            ModelDirectory model;
            model.Remove(tensor);
            model.WriteTo(dir);
          },
          StatusCode::kInvalidArgument,
          {"tensor \"" + tensor + "\" is missing, expected " + expected}};
}

// `tensor` has `shape` instead of its own.
MalformedCase Shaped(std::string name, std::string tensor,
                     std::vector<int64_t> shape, const std::string& message) {
  return {"ModelShape" + name,
          [tensor, shape](const TempDir& dir) {
            ModelDirectory model;
            model.tensor(tensor).shape = shape;
            model.WriteTo(dir);
          },
          StatusCode::kInvalidArgument,
          {"model.safetensors: tensor \"" + tensor + "\" is " + message}};
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
            {"is F32 [10, 16], expected F16 [10, 16] (see `binarymos convert"}),
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
            [](ModelDirectory& model) {
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

// --- All of them ---

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

// --- Damage at random ---

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
