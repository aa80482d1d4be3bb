#include "engine/convert_plan.h"

#include <array>
#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/model/bounded_json.h"
#include "engine/model/regular_file.h"
#include "engine/model/weights.h"
#include "engine/tensor_convert.h"

namespace binarymos {
namespace {

using nlohmann::json;

constexpr size_t kMaxConfigBytes = 16 << 20;
constexpr int kMaxExperts = 8;

absl::StatusOr<json> ReadConfig(const std::string& path) {
  const absl::StatusOr<std::string> text =
      ReadRegularFile(path, kMaxConfigBytes);
  if (!text.ok()) return text.status();
  return ParseBoundedJson(*text, path);
}

bool IsPresent(const json& config, const char* key) {
  const auto it = config.find(key);
  return it != config.end() && !it->is_null();
}

// How `method` treats a source with this configuration.
absl::StatusOr<LinearConversion> ChooseConversion(const json& config,
                                                  const std::string& path,
                                                  const std::string& method) {
  const auto fail = [&](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", parts...));
  };
  if (IsPresent(config, "quantization_config")) {
    return fail(
        "quantization_config: this model is packed or quantized already, "
        "expected a training checkpoint or a plain float model");
  }
  if (IsPresent(config, "num_expert")) {
    if (method == "auto") return LinearConversion::kPackTrained;
    return fail(
        "num_expert: this is a BinaryMoS training checkpoint, expected "
        "a plain float model for --method ",
        method, "; leave the method out");
  }
  if (method == "float16") return LinearConversion::kCopy;
  if (method == "binarymos-init" || method == "onebit") {
    return LinearConversion::kBinarize;
  }
  if (method == "auto") {
    return fail(
        "there is no num_expert, so this is a plain float model; in float16 it "
        "can be served as it is, or give --method float16, binarymos-init or "
        "onebit");
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--method is \"", method,
                   "\", expected auto, binarymos-init, onebit or float16"));
}

absl::StatusOr<int> NumExperts(const json& config, const std::string& path,
                               LinearConversion linears,
                               const std::string& method, int num_experts) {
  if (linears == LinearConversion::kPackTrained) {
    const json& value = config["num_expert"];
    if (value.is_number_unsigned() && value >= 1 && value <= kMaxExperts) {
      return value.get<int>();
    }
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": num_expert: expected an integer from 1 to ", kMaxExperts));
  }
  if (method == "onebit") return 1;
  if (num_experts >= 1 && num_experts <= kMaxExperts) return num_experts;
  return absl::InvalidArgumentError(absl::StrCat(
      "--experts is ", num_experts, "; it must be from 1 to ", kMaxExperts));
}

// Collects jobs, and remembers the first tensor that is not as expected.
class Planner {
 public:
  Planner(const Checkpoint& checkpoint, const ConfigConversion& conversion)
      : checkpoint_(checkpoint),
        config_(conversion.config),
        linears_(conversion.linears) {}

  absl::StatusOr<std::vector<TensorJob>> Plan() {
    const Shape table = {config_.vocab_size, config_.hidden_size};
    Values("model.embed_tokens.weight", table);
    for (int i = 0; i < config_.num_layers && status_.ok(); ++i) Block(i);
    Norm("model.norm.weight");
    if (config_.tie_word_embeddings) {
      TiedHead();
    } else {
      Values("lm_head.weight", table);
    }
    CheckNothingIsLeft();
    if (!status_.ok()) return status_;
    return std::move(jobs_);
  }

 private:
  void Block(int layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    const std::array<BlockLinear, 7> linears = BlockLinears(config_);
    Norm(prefix + "input_layernorm.weight");
    for (size_t i = 0; i < linears.size(); ++i) {
      if (i == 4) Norm(prefix + "post_attention_layernorm.weight");
      Linear(prefix, linears[i]);
    }
  }

  void Linear(const std::string& prefix, const BlockLinear& linear) {
    const std::string name = prefix + linear.name;
    const Shape weight = {linear.out_features, linear.in_features};
    switch (linears_) {
      case LinearConversion::kPackTrained:
        Trained(name, linear, weight);
        break;
      case LinearConversion::kBinarize:
        Binarized(name, linear, weight);
        break;
      case LinearConversion::kCopy:
        Values(name + ".weight", weight);
    }
    if (linear.bias) Values(name + ".bias", {linear.out_features});
    Router(name, linear.in_features);
  }

  void Trained(const std::string& name, const BlockLinear& linear,
               Shape weight) {
    const int64_t experts = config_.num_experts;
    Signs(name, linear, weight);
    Values(name + ".in_channel_scale", {experts, linear.in_features},
           name + ".in_scale");
    Values(name + ".out_channel_scale", {experts, linear.out_features},
           name + ".out_scale");
  }

  void Binarized(const std::string& name, const BlockLinear& linear,
                 Shape weight) {
    const int64_t experts = config_.num_experts;
    Signs(name, linear, weight);
    Add(TensorJob::Kind::kInScale, name + ".weight", name + ".in_scale",
        {experts, linear.in_features});
    Add(TensorJob::Kind::kOutScale, name + ".weight", name + ".out_scale",
        {experts, linear.out_features});
  }

  void Signs(const std::string& name, const BlockLinear& linear, Shape weight) {
    Require(name + ".weight", weight);
    jobs_.push_back({TensorJob::Kind::kSigns,
                     name + ".weight",
                     {name + ".sign",
                      DType::kU8,
                      {linear.out_features, linear.in_features / 8}}});
  }

  void Router(const std::string& name, int64_t in_features) {
    const std::string source = name + ".gate_linear.weight";
    const Shape shape = {config_.num_experts, in_features};
    if (config_.num_experts <= 1) {
      // A router of one expert has no effect.
      if (linears_ == LinearConversion::kPackTrained) used_.insert(source);
    } else if (linears_ == LinearConversion::kPackTrained) {
      Values(source, shape, name + ".gate");
    } else {
      Add(TensorJob::Kind::kRouter, "", name + ".gate", shape);
    }
  }

  void Norm(const std::string& name) { Values(name, {config_.hidden_size}); }

  void Values(const std::string& source, Shape shape) {
    Values(source, shape, source);
  }
  void Values(const std::string& source, Shape shape,
              const std::string& target) {
    Require(source, shape);
    Add(TensorJob::Kind::kValues, source, target, shape);
  }

  void Add(TensorJob::Kind kind, const std::string& source,
           const std::string& target, Shape shape) {
    jobs_.push_back({kind, source, {target, DType::kF16, shape}});
  }

  void Require(const std::string& name, Shape shape) {
    if (!status_.ok()) return;
    used_.insert(name);
    const auto it = checkpoint_.tensors().find(name);
    const std::string expected =
        absl::StrCat("expected F16, BF16 or F32 ", shape.ToString(),
                     " because of config.json");
    if (it == checkpoint_.tensors().end()) {
      Fail(name, "is missing, " + expected);
      return;
    }
    const Checkpoint::Entry& entry = it->second;
    const auto tensor = checkpoint_.Find(name);
    if (!tensor.ok() || !IsFloat(tensor->dtype) || entry.shape != shape) {
      Fail(name, absl::StrCat("is ", entry.dtype, " ", entry.shape.ToString(),
                              ", ", expected));
    }
  }

  // A tied lm_head that is stored all the same must be the embedding; it is not
  // written.
  void TiedHead() {
    const char* name = "lm_head.weight";
    if (!status_.ok() || !checkpoint_.Contains(name)) return;
    Require(name, {config_.vocab_size, config_.hidden_size});
    if (!status_.ok()) return;
    const auto head = checkpoint_.Find(name);
    const auto table = checkpoint_.Find("model.embed_tokens.weight");
    if (head->dtype != table->dtype ||
        std::memcmp(head->data, table->data, head->bytes()) != 0) {
      Fail(name,
           "differs from model.embed_tokens.weight, expected the same values "
           "or none because of tie_word_embeddings");
    }
  }

  void CheckNothingIsLeft() {
    if (status_.ok()) status_ = CheckAllUsed(checkpoint_, used_);
  }

  void Fail(const std::string& name, const std::string& what) {
    status_ = absl::InvalidArgumentError(absl::StrCat(
        checkpoint_.FileOf(name), ": tensor \"", name, "\" ", what));
  }

  const Checkpoint& checkpoint_;
  const LlamaConfig& config_;
  const LinearConversion linears_;
  absl::Status status_;
  std::set<std::string> used_;
  std::vector<TensorJob> jobs_;
};

}  // namespace

absl::StatusOr<ConfigConversion> ConvertConfig(const std::string& source,
                                               const std::string& method,
                                               int num_experts) {
  const std::string path = source + "/config.json";
  absl::StatusOr<json> config = ReadConfig(path);
  if (!config.ok()) return config.status();
  const absl::StatusOr<LinearConversion> linears =
      ChooseConversion(*config, path, method);
  if (!linears.ok()) return linears.status();
  const absl::StatusOr<int> experts =
      NumExperts(*config, path, *linears, method, num_experts);
  if (!experts.ok()) return experts.status();

  ConfigConversion conversion{.linears = *linears, .json = *std::move(config)};
  json& target = conversion.json;
  target.erase("num_expert");
  target["torch_dtype"] = "float16";
  if (target.value("architectures", json()) ==
      json::array({"BinaryMoSForCausalLM"})) {
    target["architectures"] = json::array({"LlamaForCausalLM"});
  }
  if (*linears != LinearConversion::kCopy) {
    target["quantization_config"] = {{"quant_method", "binarymos"},
                                     {"num_experts", *experts},
                                     {"version", 1}};
  }
  absl::StatusOr<LlamaConfig> parsed = LlamaConfig::Parse(target.dump(), path);
  if (!parsed.ok()) return parsed.status();
  conversion.config = *std::move(parsed);
  return conversion;
}

absl::StatusOr<std::vector<TensorJob>> PlanTensors(
    const Checkpoint& checkpoint, const ConfigConversion& conversion) {
  return Planner(checkpoint, conversion).Plan();
}

}  // namespace binarymos
