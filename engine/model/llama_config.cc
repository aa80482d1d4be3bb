#include "engine/model/llama_config.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/model/bounded_json.h"
#include "engine/model/regular_file.h"

namespace binarymos {
namespace {

using nlohmann::json;

constexpr size_t kMaxConfigBytes = 16 << 20;

// A value as text, for messages.
std::string Show(const json& value) {
  constexpr size_t kMaxLength = 60;
  if (value.is_structured()) return value.is_array() ? "an array" : "an object";
  std::string text = value.dump(-1, ' ', /*ensure_ascii=*/true,
                                json::error_handler_t::replace);
  if (text.size() > kMaxLength) text.replace(kMaxLength, text.npos, "...");
  return text;
}

// Reads keys of one JSON object and remembers the first thing wrong with them.
// A key whose value is null counts as absent, as in Hugging Face's files.
class ObjectReader {
 public:
  ObjectReader(const json& object, std::string file, std::string prefix = "")
      : object_(object), file_(std::move(file)), prefix_(std::move(prefix)) {}

  const absl::Status& status() const { return status_; }

  const json* Find(const char* key) const {
    const auto it = object_.find(key);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }

  // Each reads into `out` what `key` holds, or leaves it alone if the key is
  // absent; true if it was there and right.
  bool Int(const char* key, int min, int max, int* out) {
    const json* value = Find(key);
    if (value == nullptr) return false;
    if (!IsIntIn(*value, min, max)) {
      return Wrong(key, *value,
                   absl::StrCat("an integer from ", min, " to ", max));
    }
    *out = value->get<int>();
    return true;
  }
  bool RequiredInt(const char* key, int min, int max, int* out) {
    if (Find(key) == nullptr) {
      return Fail(absl::InvalidArgumentError(absl::StrCat(
          file_, ": ", prefix_, key, " is missing, expected an integer from ",
          min, " to ", max)));
    }
    return Int(key, min, max, out);
  }
  // min <= value <= max
  bool Double(const char* key, double min, double max, double* out) {
    const json* value = Find(key);
    if (value == nullptr) return false;
    const double number = value->is_number()
                              ? value->get<double>()
                              : std::numeric_limits<double>::quiet_NaN();
    if (!(number >= min && number <= max)) {
      return Wrong(key, *value,
                   absl::StrCat("a number from ", min, " to ", max));
    }
    *out = number;
    return true;
  }
  bool Bool(const char* key, bool* out) {
    const json* value = Find(key);
    if (value == nullptr) return false;
    if (!value->is_boolean()) return Wrong(key, *value, "true or false");
    *out = value->get<bool>();
    return true;
  }
  bool String(const char* key, std::string* out) {
    const json* value = Find(key);
    if (value == nullptr) return false;
    if (!value->is_string()) return Wrong(key, *value, "a string");
    *out = value->get<std::string>();
    return true;
  }
  // One token or a list of tokens, added to `out`.
  bool Tokens(const char* key, int vocab_size, std::vector<int32_t>* out) {
    const json* value = Find(key);
    if (value == nullptr) return false;
    const json list = value->is_array() ? *value : json::array({*value});
    for (const json& token : list) {
      if (!IsIntIn(token, 0, vocab_size - 1)) {
        return Wrong(key, token,
                     absl::StrCat("token ids from 0 to ", vocab_size - 1));
      }
      out->push_back(token.get<int32_t>());
    }
    return true;
  }

  // Reports that `key` holds something that is not allowed. Returns false.
  bool Wrong(const char* key, const json& value, const std::string& allowed) {
    return Fail(absl::InvalidArgumentError(
        absl::StrCat(file_, ": ", prefix_, key, " is ", Show(value),
                     ", expected ", allowed)));
  }
  bool Unsupported(const char* key, const json& value,
                   const std::string& supported) {
    return Fail(absl::UnimplementedError(
        absl::StrCat(file_, ": ", prefix_, key, " is ", Show(value),
                     ", supported: ", supported)));
  }
  bool Fail(absl::Status status) {
    if (status_.ok()) status_ = std::move(status);
    return false;
  }

 private:
  static bool IsIntIn(const json& value, int64_t min, int64_t max) {
    if (value.is_number_unsigned()) {
      const auto number = value.get<uint64_t>();
      return number <= static_cast<uint64_t>(max) &&
             static_cast<int64_t>(number) >= min;
    }
    if (!value.is_number_integer()) return false;
    const auto number = value.get<int64_t>();
    return number >= min && number <= max;
  }

  const json& object_;
  const std::string file_;
  const std::string prefix_;
  absl::Status status_;
};

absl::Status CheckArchitecture(ObjectReader& reader) {
  const json* type = reader.Find("model_type");
  if (type != nullptr && *type != "llama") {
    reader.Unsupported("model_type", *type, "\"llama\"");
  }
  const json* names = reader.Find("architectures");
  if (names == nullptr) {
    if (type == nullptr) {
      reader.Wrong("model_type", json(nullptr), "\"llama\"");
    }
    return reader.status();
  }
  if (!names->is_array()) {
    reader.Wrong("architectures", *names, "an array of strings");
  } else if (std::none_of(names->begin(), names->end(), [](const json& name) {
               return name == "LlamaForCausalLM" || name == "LLaMAForCausalLM";
             })) {
    reader.Unsupported("architectures",
                       names->empty() ? *names : names->front(),
                       "\"LlamaForCausalLM\"");
  }
  return reader.status();
}

absl::Status ReadRope(ObjectReader& reader, const std::string& file,
                      LlamaConfig* config) {
  reader.Double("rope_theta", 1, 1e12, &config->rope_theta);
  // "rope_parameters" is the newer name, and then holds rope_theta too.
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const json* object = reader.Find(key);
    if (object == nullptr) continue;
    if (!object->is_object()) {
      reader.Wrong(key, *object, "an object or null");
      break;
    }
    ObjectReader rope(*object, file, absl::StrCat(key, "."));
    rope.Double("rope_theta", 1, 1e12, &config->rope_theta);
    std::string type = "default";
    const char* type_key = rope.Find("rope_type") ? "rope_type" : "type";
    rope.String(type_key, &type);
    if (type == "linear" || type == "dynamic") {
      config->rope_scaling.kind = type == "linear"
                                      ? RopeScaling::Kind::kLinear
                                      : RopeScaling::Kind::kDynamic;
      if (!rope.Double("factor", 1, 1e6, &config->rope_scaling.factor) &&
          rope.status().ok()) {
        rope.Fail(absl::InvalidArgumentError(absl::StrCat(
            file, ": ", key, ".factor is missing, expected a number from 1")));
      }
    } else if (type != "default" && rope.status().ok()) {
      rope.Unsupported(type_key, type,
                       "\"default\", \"linear\" and \"dynamic\"");
    }
    if (!rope.status().ok()) return rope.status();
  }
  return reader.status();
}

absl::Status ReadQuantization(ObjectReader& reader, const std::string& file,
                              LlamaConfig* config) {
  const json* object = reader.Find("quantization_config");
  if (object == nullptr) {
    if (reader.Find("num_expert") != nullptr) {
      reader.Fail(absl::InvalidArgumentError(absl::StrCat(
          file,
          ": num_expert without quantization_config: this is a training "
          "checkpoint with latent weights; run `binarymos convert`")));
    }
    return reader.status();
  }
  if (!object->is_object()) {
    reader.Wrong("quantization_config", *object, "an object or null");
    return reader.status();
  }
  ObjectReader quantization(*object, file, "quantization_config.");
  const json* method = quantization.Find("quant_method");
  if (method == nullptr) {
    quantization.Wrong("quant_method", json(nullptr), "\"binarymos\"");
  } else if (*method != "binarymos") {
    quantization.Unsupported("quant_method", *method,
                             "\"binarymos\", or no quantization_config for "
                             "float16");
  }
  int version = 0;
  quantization.RequiredInt("version", 1, 1, &version);
  quantization.RequiredInt("num_experts", 1, 8, &config->num_experts);
  config->quant_method = QuantMethod::kBinaryMos;
  return quantization.status();
}

// Relations between the sizes.
absl::Status CheckSizes(const LlamaConfig& config, const std::string& file) {
  const auto fail = [&](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": ", parts...));
  };
  if (config.hidden_size % 8 != 0) {
    return fail("hidden_size is ", config.hidden_size,
                ", expected a multiple of 8");
  }
  if (config.intermediate_size % 8 != 0) {
    return fail("intermediate_size is ", config.intermediate_size,
                ", expected a multiple of 8");
  }
  if (config.num_heads % config.num_kv_heads != 0) {
    return fail("num_key_value_heads is ", config.num_kv_heads,
                ", expected a divisor of num_attention_heads, ",
                config.num_heads);
  }
  if (config.head_dim % 2 != 0) {
    return fail("head_dim is ", config.head_dim, ", expected an even number");
  }
  if (config.q_size() % 8 != 0) {
    return fail("num_attention_heads * head_dim is ", config.q_size(),
                ", expected a multiple of 8");
  }
  return absl::OkStatus();
}

absl::Status ReadHeads(ObjectReader& reader, const std::string& file,
                       LlamaConfig* config) {
  reader.RequiredInt("num_attention_heads", 1, 1024, &config->num_heads);
  config->num_kv_heads = config->num_heads;
  reader.Int("num_key_value_heads", 1, std::max(1, config->num_heads),
             &config->num_kv_heads);
  if (!reader.status().ok()) return reader.status();
  if (reader.Int("head_dim", 2, 512, &config->head_dim)) {
    return absl::OkStatus();
  }
  if (!reader.status().ok()) return reader.status();
  config->head_dim = config->hidden_size / config->num_heads;
  if (config->hidden_size % config->num_heads != 0 || config->head_dim < 2 ||
      config->head_dim > 512) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": hidden_size / num_attention_heads is ",
                     config->hidden_size, " / ", config->num_heads,
                     ", expected a whole number from 2 to 512 (or head_dim)"));
  }
  return absl::OkStatus();
}

absl::Status ReadTokens(ObjectReader& reader, LlamaConfig* config) {
  // -1 is how some files say "none".
  reader.Int("bos_token_id", -1, config->vocab_size - 1, &config->bos_token);
  reader.Tokens("eos_token_id", config->vocab_size, &config->eos_tokens);
  return reader.status();
}

void SortTokens(std::vector<int32_t>& tokens) {
  std::sort(tokens.begin(), tokens.end());
  tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
}

absl::Status ReadGenerationConfig(const std::string& path,
                                  LlamaConfig* config) {
  const absl::StatusOr<std::string> text =
      ReadRegularFile(path, kMaxConfigBytes);
  if (absl::IsNotFound(text.status())) return absl::OkStatus();
  if (!text.ok()) return text.status();
  const absl::StatusOr<json> document = ParseBoundedJson(*text, path);
  if (!document.ok()) return document.status();
  ObjectReader reader(*document, path);
  reader.Tokens("eos_token_id", config->vocab_size, &config->eos_tokens);
  SortTokens(config->eos_tokens);
  return reader.status();
}

}  // namespace

const char* Name(QuantMethod method) {
  return method == QuantMethod::kBinaryMos ? "binarymos" : "float16";
}

const char* Name(RopeScaling::Kind kind) {
  switch (kind) {
    case RopeScaling::Kind::kNone:
      return "none";
    case RopeScaling::Kind::kLinear:
      return "linear";
    case RopeScaling::Kind::kDynamic:
      return "dynamic";
  }
  return "?";
}

absl::StatusOr<LlamaConfig> LlamaConfig::Parse(std::string_view text,
                                               const std::string& file) {
  const absl::StatusOr<json> document = ParseBoundedJson(text, file);
  if (!document.ok()) return document.status();
  ObjectReader reader(*document, file);
  LlamaConfig config;
  if (auto status = CheckArchitecture(reader); !status.ok()) return status;
  if (const json* act = reader.Find("hidden_act"); act && *act != "silu") {
    reader.Unsupported("hidden_act", *act, "\"silu\"");
  }
  reader.RequiredInt("hidden_size", 8, 65536, &config.hidden_size);
  reader.RequiredInt("intermediate_size", 8, 524288, &config.intermediate_size);
  reader.RequiredInt("num_hidden_layers", 1, 512, &config.num_layers);
  reader.RequiredInt("vocab_size", 1, 1 << 20, &config.vocab_size);
  reader.RequiredInt("max_position_embeddings", 1, 1 << 24,
                     &config.max_position_embeddings);
  double eps = config.rms_norm_eps;
  reader.Double("rms_norm_eps", 1e-12, 0.1, &eps);
  config.rms_norm_eps = static_cast<float>(eps);
  reader.Bool("tie_word_embeddings", &config.tie_word_embeddings);
  reader.Bool("attention_bias", &config.attention_bias);
  reader.Bool("mlp_bias", &config.mlp_bias);
  if (!reader.status().ok()) return reader.status();
  absl::Status status = ReadHeads(reader, file, &config);
  if (status.ok()) status = CheckSizes(config, file);
  if (status.ok()) status = ReadRope(reader, file, &config);
  if (status.ok()) status = ReadTokens(reader, &config);
  if (status.ok()) status = ReadQuantization(reader, file, &config);
  if (!status.ok()) return status;
  SortTokens(config.eos_tokens);
  return config;
}

absl::StatusOr<LlamaConfig> LlamaConfig::Load(const std::string& model_dir) {
  const std::string path = model_dir + "/config.json";
  const absl::StatusOr<std::string> text =
      ReadRegularFile(path, kMaxConfigBytes);
  if (!text.ok()) return text.status();
  absl::StatusOr<LlamaConfig> config = Parse(*text, path);
  if (!config.ok()) return config;
  const absl::Status status =
      ReadGenerationConfig(model_dir + "/generation_config.json", &*config);
  if (!status.ok()) return status;
  return config;
}

}  // namespace binarymos
