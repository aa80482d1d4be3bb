#include "engine/inspect.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <string_view>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/model/checkpoint.h"
#include "engine/model/llama_config.h"
#include "engine/model/weights.h"

namespace binarymos {
namespace {

enum Part {
  kEmbeddings,
  kLinearWeights,
  kScales,
  kGates,
  kBiases,
  kNorms,
  kHead,
  kOther,
  kNumParts
};
constexpr std::array<const char*, kNumParts> kPartNames = {
    "embeddings",   "linear weights", "token-adaptive scales",
    "router gates", "biases",         "norms",
    "lm_head",      "other"};

Part PartOf(const std::string& name) {
  if (name == "model.embed_tokens.weight") return kEmbeddings;
  if (name == "lm_head.weight") return kHead;
  if (absl::StrContains(name, "norm")) return kNorms;
  if (absl::EndsWith(name, ".bias")) return kBiases;
  if (absl::EndsWith(name, ".gate")) return kGates;
  if (absl::EndsWith(name, "_scale")) return kScales;
  if (absl::EndsWith(name, ".sign")) return kLinearWeights;
  if (absl::EndsWith(name, "_proj.weight")) return kLinearWeights;
  return kOther;
}

bool IsSign(const std::string& name) { return absl::EndsWith(name, ".sign"); }

// Orders digits by their value: "layers.2" before "layers.10".
bool NaturalLess(std::string_view a, std::string_view b) {
  const auto digits = [](std::string_view text) {
    size_t n = 0;
    while (n < text.size() && std::isdigit(static_cast<uint8_t>(text[n]))) ++n;
    return n;
  };
  while (!a.empty() && !b.empty()) {
    size_t length_a = digits(a);
    size_t length_b = digits(b);
    if (length_a == 0 || length_b == 0) {
      if (a[0] != b[0]) return a[0] < b[0];
      length_a = length_b = 1;
    } else if (a.substr(0, length_a) != b.substr(0, length_b)) {
      if (length_a != length_b) return length_a < length_b;
      return a.substr(0, length_a) < b.substr(0, length_b);
    }
    a.remove_prefix(length_a);
    b.remove_prefix(length_b);
  }
  return a.size() < b.size();
}

// As the data flows: embedding, blocks, everything else, lm_head.
int Rank(const std::string& name) {
  switch (PartOf(name)) {
    case kEmbeddings:
      return 0;
    case kHead:
      return 3;
    default:
      return absl::StartsWith(name, "model.layers.") ? 1 : 2;
  }
}

std::vector<std::pair<std::string, std::string>> ConfigFacts(
    const LlamaConfig& config) {
  std::vector<std::pair<std::string, std::string>> facts = {
      {"architecture", "llama"},
      {"quant_method", Name(config.quant_method)},
      {"num_experts", absl::StrCat(config.num_experts)},
      {"hidden_size", absl::StrCat(config.hidden_size)},
      {"intermediate_size", absl::StrCat(config.intermediate_size)},
      {"num_hidden_layers", absl::StrCat(config.num_layers)},
      {"num_attention_heads", absl::StrCat(config.num_heads)},
      {"num_key_value_heads", absl::StrCat(config.num_kv_heads)},
      {"head_dim", absl::StrCat(config.head_dim)},
      {"vocab_size", absl::StrCat(config.vocab_size)},
      {"max_position_embeddings", absl::StrCat(config.max_position_embeddings)},
      {"rms_norm_eps", absl::StrCat(config.rms_norm_eps)},
      {"rope_theta", absl::StrCat(config.rope_theta)},
      {"rope_scaling", Name(config.rope_scaling.kind)}};
  if (config.rope_scaling.kind != RopeScaling::Kind::kNone) {
    facts.emplace_back("rope_scaling_factor",
                       absl::StrCat(config.rope_scaling.factor));
  }
  const auto boolean = [](bool value) { return value ? "true" : "false"; };
  facts.emplace_back("tie_word_embeddings",
                     boolean(config.tie_word_embeddings));
  facts.emplace_back("attention_bias", boolean(config.attention_bias));
  facts.emplace_back("mlp_bias", boolean(config.mlp_bias));
  facts.emplace_back("bos_token_id", absl::StrCat(config.bos_token));
  facts.emplace_back(
      "eos_token_ids",
      absl::StrCat("[", absl::StrJoin(config.eos_tokens, ", "), "]"));
  return facts;
}

// Fills everything that is a sum over tensors.
void SumUp(const Checkpoint& checkpoint, ModelInspection* inspection) {
  std::array<InspectedPart, kNumParts> parts;
  int64_t num_weights = 0;  // of the linear layers in the blocks
  for (const auto& [name, entry] : checkpoint.tensors()) {
    const Part part = PartOf(name);
    const int64_t elements =
        entry.shape.num_elements() * (IsSign(name) ? 8 : 1);
    ++parts[part].num_tensors;
    parts[part].bytes += static_cast<int64_t>(entry.bytes);
    inspection->total_bytes += static_cast<int64_t>(entry.bytes);
    inspection->num_parameters += elements;
    if (part == kLinearWeights) num_weights += elements;
  }
  const int64_t weight_bytes = parts[kLinearWeights].bytes;
  const int64_t linear_bytes = weight_bytes + parts[kScales].bytes +
                               parts[kGates].bytes + parts[kBiases].bytes;
  if (num_weights > 0) {
    const auto weights = static_cast<double>(num_weights);
    inspection->bits_per_weight =
        8.0 * static_cast<double>(linear_bytes) / weights;
    inspection->bits_per_weight_without_scales =
        8.0 * static_cast<double>(weight_bytes) / weights;
  }
  for (int part = 0; part < kNumParts; ++part) {
    if (parts[part].num_tensors == 0) continue;
    parts[part].name = kPartNames[part];
    inspection->parts.push_back(parts[part]);
  }
}

std::vector<InspectedTensor> ListTensors(const Checkpoint& checkpoint) {
  std::vector<InspectedTensor> tensors;
  for (const auto& [name, entry] : checkpoint.tensors()) {
    tensors.push_back({.name = name,
                       .dtype = entry.dtype,
                       .shape = entry.shape.ToString(),
                       .bytes = static_cast<int64_t>(entry.bytes)});
  }
  std::sort(tensors.begin(), tensors.end(),
            [](const InspectedTensor& a, const InspectedTensor& b) {
              const int rank_a = Rank(a.name);
              const int rank_b = Rank(b.name);
              if (rank_a != rank_b) return rank_a < rank_b;
              return NaturalLess(a.name, b.name);
            });
  return tensors;
}

std::string HumanBytes(int64_t bytes) {
  constexpr std::array<const char*, 4> kUnits = {"B", "KiB", "MiB", "GiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? absl::StrFormat("%d B", bytes)
                   : absl::StrFormat("%.2f %s", value, kUnits[unit]);
}

// Names come from the file: control characters must not reach the terminal.
std::string Printable(const std::string& text) {
  std::string printable = text;
  for (char& c : printable) {
    if (static_cast<uint8_t>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return printable;
}

std::string JsonString(const std::string& text) {
  std::string json = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      json += '\\';
      json += c;
    } else if (static_cast<uint8_t>(c) < 0x20) {
      absl::StrAppendFormat(&json, "\\u%04x", static_cast<uint8_t>(c));
    } else {
      json += c;
    }
  }
  return json + '"';
}

// A fact of the configuration: numbers, lists and booleans stand for
// themselves.
std::string JsonFact(const std::string& value) {
  const bool literal = value == "true" || value == "false" ||
                       value.find_first_of("-0123456789[") == 0;
  return literal ? value : JsonString(value);
}

// The elements of a JSON array or object, one per line.
std::string JsonBlock(char open, const std::vector<std::string>& elements,
                      char close) {
  if (elements.empty()) return {open, close};
  return absl::StrCat(std::string(1, open), "\n    ",
                      absl::StrJoin(elements, ",\n    "), "\n  ",
                      std::string(1, close));
}

}  // namespace

absl::StatusOr<ModelInspection> InspectModel(const std::string& model_dir) {
  const absl::StatusOr<LlamaConfig> config = LlamaConfig::Load(model_dir);
  if (!config.ok()) return config.status();
  const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(model_dir);
  if (!checkpoint.ok()) return checkpoint.status();

  ModelInspection inspection;
  inspection.model_dir = model_dir;
  for (const std::string& file : checkpoint->files()) {
    inspection.files.push_back(file.substr(file.rfind('/') + 1));
  }
  inspection.config = ConfigFacts(*config);
  inspection.tensors = ListTensors(*checkpoint);
  SumUp(*checkpoint, &inspection);
  constexpr int64_t kBytesPerElement = 2;
  inspection.kv_bytes_per_token =
      kBytesPerElement * 2 * config->num_layers * config->kv_size();
  inspection.head_bytes =
      kBytesPerElement * config->vocab_size * config->hidden_size;
  constexpr int64_t kScaleBytes = 4;  // of a row
  inspection.int8_head_bytes =
      config->vocab_size * (config->hidden_size + kScaleBytes);
  inspection.problem =
      std::string(CheckWeights(*checkpoint, *config).message());
  return inspection;
}

std::string ToText(const ModelInspection& inspection, bool with_tensors) {
  std::string text = absl::StrCat("Model ", inspection.model_dir, "\n");
  for (const auto& [name, value] : inspection.config) {
    absl::StrAppendFormat(&text, "  %-26s %s\n", name, value);
  }
  absl::StrAppend(&text, "\nFiles\n");
  for (const std::string& file : inspection.files) {
    absl::StrAppend(&text, "  ", Printable(file), "\n");
  }
  if (with_tensors) {
    absl::StrAppend(&text, "\nTensors\n");
    for (const InspectedTensor& tensor : inspection.tensors) {
      absl::StrAppendFormat(&text, "  %-56s %-5s %-16s %12d\n",
                            Printable(tensor.name), tensor.dtype, tensor.shape,
                            tensor.bytes);
    }
  }
  absl::StrAppendFormat(&text, "\n%-28s %8s %14s %12s %7s\n", "Part", "tensors",
                        "bytes", "", "share");
  const auto total = static_cast<double>(inspection.total_bytes);
  for (const InspectedPart& part : inspection.parts) {
    absl::StrAppendFormat(
        &text, "  %-26s %8d %14d %12s %6.1f%%\n", part.name, part.num_tensors,
        part.bytes, HumanBytes(part.bytes),
        total == 0 ? 0.0 : 100 * static_cast<double>(part.bytes) / total);
  }
  absl::StrAppendFormat(&text, "  %-26s %8d %14d %12s\n\n", "total",
                        inspection.tensors.size(), inspection.total_bytes,
                        HumanBytes(inspection.total_bytes));
  absl::StrAppendFormat(&text, "%-28s %d\n", "Parameters",
                        inspection.num_parameters);
  absl::StrAppendFormat(&text,
                        "%-28s %.3f (%.3f without scales, gates and biases)\n",
                        "Bits per weight", inspection.bits_per_weight,
                        inspection.bits_per_weight_without_scales);
  absl::StrAppendFormat(
      &text, "%-28s %s, or %s in fp8_e4m3 (--kv-cache-dtype)\n",
      "KV cache per token", HumanBytes(inspection.kv_bytes_per_token),
      HumanBytes(inspection.kv_bytes_per_token / 2));
  absl::StrAppendFormat(&text, "%-28s %s, or %s in int8 (--lm-head)\n",
                        "lm_head in memory", HumanBytes(inspection.head_bytes),
                        HumanBytes(inspection.int8_head_bytes));
  if (!inspection.problem.empty()) {
    absl::StrAppend(&text, "\nThis model cannot be loaded: ",
                    Printable(inspection.problem), "\n");
  }
  return text;
}

std::string ToJson(const ModelInspection& inspection, bool with_tensors) {
  std::vector<std::string> config;
  for (const auto& [name, value] : inspection.config) {
    config.push_back(absl::StrCat(JsonString(name), ": ", JsonFact(value)));
  }
  std::vector<std::string> files;
  for (const std::string& file : inspection.files) {
    files.push_back(JsonString(file));
  }
  std::vector<std::string> parts;
  for (const InspectedPart& part : inspection.parts) {
    parts.push_back(
        absl::StrFormat("{\"name\": %s, \"num_tensors\": %d, \"bytes\": %d}",
                        JsonString(part.name), part.num_tensors, part.bytes));
  }
  std::vector<std::string> members = {
      "\"model_dir\": " + JsonString(inspection.model_dir),
      "\"files\": " + JsonBlock('[', files, ']'),
      "\"config\": " + JsonBlock('{', config, '}'),
      "\"parts\": " + JsonBlock('[', parts, ']'),
      absl::StrCat("\"num_parameters\": ", inspection.num_parameters),
      absl::StrCat("\"total_bytes\": ", inspection.total_bytes),
      absl::StrFormat("\"bits_per_weight\": %.6f", inspection.bits_per_weight),
      absl::StrFormat("\"bits_per_weight_without_scales\": %.6f",
                      inspection.bits_per_weight_without_scales),
      absl::StrCat("\"kv_bytes_per_token\": ", inspection.kv_bytes_per_token),
      absl::StrCat("\"head_bytes\": ", inspection.head_bytes),
      absl::StrCat("\"int8_head_bytes\": ", inspection.int8_head_bytes),
      "\"problem\": " + JsonString(inspection.problem)};
  if (with_tensors) {
    std::vector<std::string> tensors;
    for (const InspectedTensor& tensor : inspection.tensors) {
      tensors.push_back(absl::StrFormat(
          "{\"name\": %s, \"dtype\": \"%s\", \"shape\": %s, \"bytes\": %d}",
          JsonString(tensor.name), tensor.dtype, tensor.shape, tensor.bytes));
    }
    members.push_back("\"tensors\": " + JsonBlock('[', tensors, ']'));
  }
  return absl::StrCat("{\n  ", absl::StrJoin(members, ",\n  "), "\n}\n");
}

}  // namespace binarymos
