#include "engine/synthesize.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/core/float16.h"
#include "engine/core/tensor.h"
#include "engine/model/llama_config.h"
#include "engine/output_directory.h"
#include "engine/safetensors_writer.h"
#include "engine/synthetic_tokenizer.h"

namespace binarymos {
namespace {

constexpr int kBos = 1;
constexpr int kEos = 2;
constexpr const char* kTraining = "binarymos-training";

// xorshift64*, seeded through splitmix64.
class Random {
 public:
  explicit Random(uint64_t seed) {
    seed += 0x9e3779b97f4a7c15u;
    seed = (seed ^ (seed >> 30)) * 0xbf58476d1ce4e5b9u;
    seed = (seed ^ (seed >> 27)) * 0x94d049bb133111ebu;
    state_ = (seed ^ (seed >> 31)) | 1;
  }
  uint64_t Next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545f4914f6cdd1du;
  }

 private:
  uint64_t state_;
};

// A tensor to write: random bits (U8), or F16 values that are uniform around
// `mean`.
struct TensorPlan {
  TensorSpec spec;
  double mean = 0;
  double deviation = 0;  // standard deviation
};

// --- What to write ---

std::string ConfigJson(const SyntheticShape& shape) {
  std::string json = absl::StrFormat(
      "{\n"
      "  \"architectures\": [\"LlamaForCausalLM\"],\n"
      "  \"model_type\": \"llama\",\n"
      "  \"hidden_act\": \"silu\",\n"
      "  \"hidden_size\": %d,\n"
      "  \"intermediate_size\": %d,\n"
      "  \"num_hidden_layers\": %d,\n"
      "  \"num_attention_heads\": %d,\n"
      "  \"num_key_value_heads\": %d,\n"
      "  \"vocab_size\": %d,\n"
      "  \"max_position_embeddings\": %d,\n"
      "  \"rms_norm_eps\": %.9g,\n"
      "  \"rope_theta\": %.17g,\n"
      "  \"bos_token_id\": %d,\n"
      "  \"eos_token_id\": %d,\n",
      shape.hidden_size, shape.intermediate_size, shape.num_layers,
      shape.num_heads, shape.num_kv_heads, shape.vocab_size,
      shape.max_position_embeddings, shape.rms_norm_eps, shape.rope_theta, kBos,
      kEos);
  if (shape.head_dim != 0) {
    absl::StrAppend(&json, "  \"head_dim\": ", shape.head_dim, ",\n");
  }
  if (shape.rope_scaling != "none") {
    absl::StrAppendFormat(
        &json, "  \"rope_scaling\": {\"type\": \"%s\", \"factor\": %.17g},\n",
        shape.rope_scaling, shape.rope_factor);
  }
  if (shape.quant_method == "binarymos") {
    absl::StrAppend(&json,
                    "  \"quantization_config\": {\"quant_method\": "
                    "\"binarymos\", \"num_experts\": ",
                    shape.num_experts, ", \"version\": 1},\n");
  }
  if (shape.quant_method == kTraining) {
    absl::StrAppend(&json, "  \"num_expert\": ", shape.num_experts, ",\n");
  }
  const auto boolean = [](bool value) { return value ? "true" : "false"; };
  absl::StrAppend(
      &json, "  \"attention_bias\": ", boolean(shape.attention_bias),
      ",\n  \"mlp_bias\": ", boolean(shape.mlp_bias),
      ",\n  \"tie_word_embeddings\": ", boolean(shape.tie_word_embeddings),
      ",\n  \"torch_dtype\": \"float16\"\n}\n");
  return json;
}

std::string GenerationConfigJson() {
  return absl::StrCat("{\n  \"bos_token_id\": ", kBos,
                      ",\n  \"eos_token_id\": ", kEos, "\n}\n");
}

// All tensors of a model in the order of the layers. Linear layers are scaled
// so that inputs of unit scale give outputs of scale `gain`.
class ModelPlan {
 public:
  ModelPlan(const SyntheticShape& shape, const LlamaConfig& config)
      : shape_(shape), config_(config) {
    const int64_t hidden = config.hidden_size;
    // A tied embedding is the output layer too, whose logits it has to scale.
    const double logit_scale = 3 / std::sqrt(hidden);
    Value("model.embed_tokens.weight", {config.vocab_size, hidden}, 0,
          config.tie_word_embeddings ? logit_scale : 1.0);
    for (int layer = 0; layer < config.num_layers; ++layer) AddLayer(layer);
    Norm("model.norm.weight");
    if (!config.tie_word_embeddings) {
      Value("lm_head.weight", {config.vocab_size, hidden}, 0, logit_scale);
    }
  }

  const std::vector<TensorPlan>& tensors() const { return tensors_; }

 private:
  void AddLayer(int layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    const std::string attention = prefix + "self_attn.";
    const std::string mlp = prefix + "mlp.";
    const int64_t hidden = config_.hidden_size;
    const int64_t ffn = config_.intermediate_size;
    const bool bias = config_.attention_bias;
    // 2 L additions to the residual stream leave it at unit scale.
    const double branch = 1 / std::sqrt(2.0 * config_.num_layers);
    Norm(prefix + "input_layernorm.weight");
    Linear(attention + "q_proj", hidden, config_.q_size(), 1, bias);
    Linear(attention + "k_proj", hidden, config_.kv_size(), 1, bias);
    Linear(attention + "v_proj", hidden, config_.kv_size(), 1, bias);
    Linear(attention + "o_proj", config_.q_size(), hidden, 2 * branch, bias);
    Norm(prefix + "post_attention_layernorm.weight");
    Linear(mlp + "gate_proj", hidden, ffn, 1, config_.mlp_bias);
    Linear(mlp + "up_proj", hidden, ffn, 1, config_.mlp_bias);
    // silu(gate) * up of unit inputs has a scale of about a half.
    Linear(mlp + "down_proj", ffn, hidden, 2 * branch, config_.mlp_bias);
  }

  void Linear(const std::string& name, int64_t in, int64_t out, double gain,
              bool bias) {
    const double scale = gain / std::sqrt(in);
    if (shape_.quant_method != "binarymos") {
      Value(name + ".weight", {out, in}, 0, scale);
    }
    if (shape_.quant_method == kTraining) {
      const int64_t experts = config_.num_experts;
      Value(name + ".gate_linear.weight", {experts, in}, 0, 1 / std::sqrt(in));
      Value(name + ".in_channel_scale", {experts, in}, 1, 0.1);
      Value(name + ".out_channel_scale", {experts, out}, scale, 0.1 * scale);
    } else if (shape_.quant_method == "binarymos") {
      const int64_t experts = config_.num_experts;
      tensors_.push_back({{name + ".sign", DType::kU8, {out, in / 8}}});
      if (shape_.router) {
        Value(name + ".gate", {experts, in}, 0, 1 / std::sqrt(in));
      }
      Value(name + ".in_scale", {experts, in}, 1, 0.1);
      Value(name + ".out_scale", {experts, out}, scale, 0.1 * scale);
    }
    if (bias) Value(name + ".bias", {out}, 0, 0.02);
  }

  void Norm(const std::string& name) {
    Value(name, {config_.hidden_size}, 1, 0.05);
  }

  void Value(std::string name, Shape shape, double mean, double deviation) {
    tensors_.push_back(
        {{std::move(name), DType::kF16, shape}, mean, deviation});
  }

  const SyntheticShape& shape_;
  const LlamaConfig& config_;
  std::vector<TensorPlan> tensors_;
};

// --- Writing ---

// Fills `words` with four F16 values each, or with random bits.
void FillRandom(const TensorPlan& tensor, Random& random,
                std::vector<uint64_t>& words) {
  if (tensor.spec.dtype == DType::kU8) {
    std::generate(words.begin(), words.end(), [&] { return random.Next(); });
    return;
  }
  // A uniform distribution has a standard deviation of width / sqrt(12).
  const auto step =
      static_cast<float>(tensor.deviation * std::sqrt(12.0) / 65536);
  const auto first = static_cast<float>(tensor.mean) - 32767.5f * step;
  for (uint64_t& word : words) {
    const uint64_t bits = random.Next();
    word = 0;
    for (int i = 0; i < 64; i += 16) {
      const auto uniform = static_cast<float>(bits >> i & 0xffff);
      word |= uint64_t{FloatToHalf(first + uniform * step)} << i;
    }
  }
}

absl::Status WriteTensor(const TensorPlan& tensor, uint64_t seed,
                         SafetensorsWriter& writer) {
  constexpr size_t kChunkBytes = 1 << 20;
  Random random(seed);
  std::vector<uint64_t> words;
  for (size_t written = 0; written < tensor.spec.bytes();) {
    const size_t bytes = std::min(kChunkBytes, tensor.spec.bytes() - written);
    words.resize((bytes + sizeof(uint64_t) - 1) / sizeof(uint64_t));
    FillRandom(tensor, random, words);
    if (auto status = writer.Append(words.data(), bytes); !status.ok()) {
      return status;
    }
    written += bytes;
  }
  return absl::OkStatus();
}

absl::Status WriteTensors(const OutputDirectory& directory,
                          const std::vector<TensorPlan>& tensors,
                          uint64_t seed) {
  std::vector<TensorSpec> specs;
  for (const TensorPlan& tensor : tensors) specs.push_back(tensor.spec);
  absl::StatusOr<OutputFile> file = directory.CreateFile(ShardName(0, 1));
  if (!file.ok()) return file.status();
  absl::StatusOr<SafetensorsWriter> writer =
      SafetensorsWriter::Create(*std::move(file), specs);
  if (!writer.ok()) return writer.status();
  Random seeds(seed);
  for (const TensorPlan& tensor : tensors) {
    if (auto status = WriteTensor(tensor, seeds.Next(), *writer);
        !status.ok()) {
      return status;
    }
  }
  return writer->Close();
}

// The configuration that loading will see, with its checks.
absl::StatusOr<LlamaConfig> CheckShape(const SyntheticShape& shape) {
  const auto fail = [](const auto&... parts) {
    return absl::InvalidArgumentError(
        absl::StrCat("synthetic shape: ", parts...));
  };
  if (shape.vocab_size < kMinSyntheticVocab) {
    return fail("vocab_size is ", shape.vocab_size, ", expected at least ",
                kMinSyntheticVocab);
  }
  if (shape.rope_scaling != "none" && shape.rope_scaling != "linear" &&
      shape.rope_scaling != "dynamic") {
    return fail("rope_scaling is \"", shape.rope_scaling,
                "\", expected none, linear or dynamic");
  }
  if (shape.quant_method != "binarymos" && shape.quant_method != kTraining &&
      shape.quant_method != "float16") {
    return fail("quant_method is \"", shape.quant_method,
                "\", expected binarymos, binarymos-training or float16");
  }
  if (!shape.router &&
      (shape.num_experts != 1 || shape.quant_method != "binarymos")) {
    return fail("router is false, which needs binarymos with num_experts 1");
  }
  // Of a training checkpoint, the configuration that convert will make.
  SyntheticShape served = shape;
  if (shape.quant_method == kTraining) served.quant_method = "binarymos";
  return LlamaConfig::Parse(ConfigJson(served), "synthetic shape");
}

}  // namespace

absl::StatusOr<SyntheticShape> SyntheticShapeByName(std::string_view name) {
  if (name == "tiny") return SyntheticShape{};
  if (name == "1b") {
    return SyntheticShape{.hidden_size = 2048,
                          .intermediate_size = 5632,
                          .num_layers = 22,
                          .num_heads = 32,
                          .num_kv_heads = 4,
                          .vocab_size = 32000};
  }
  if (name == "7b") {
    return SyntheticShape{.hidden_size = 4096,
                          .intermediate_size = 11008,
                          .num_layers = 32,
                          .num_heads = 32,
                          .num_kv_heads = 32,
                          .vocab_size = 32000,
                          .max_position_embeddings = 4096};
  }
  if (name == "13b") {
    return SyntheticShape{.hidden_size = 5120,
                          .intermediate_size = 13824,
                          .num_layers = 40,
                          .num_heads = 40,
                          .num_kv_heads = 40,
                          .vocab_size = 32000,
                          .max_position_embeddings = 4096};
  }
  return absl::NotFoundError(absl::StrCat("there is no synthetic shape \"",
                                          std::string(name),
                                          "\", expected tiny, 1b, 7b or 13b"));
}

absl::Status SynthesizeModel(const std::string& model_dir,
                             const SyntheticShape& shape, uint64_t seed) {
  const absl::StatusOr<LlamaConfig> config = CheckShape(shape);
  if (!config.ok()) return config.status();
  absl::StatusOr<OutputDirectory> directory =
      OutputDirectory::Create(model_dir, {});
  if (!directory.ok()) return directory.status();
  absl::Status status = directory->WriteFile("config.json", ConfigJson(shape));
  if (status.ok()) {
    status =
        directory->WriteFile("generation_config.json", GenerationConfigJson());
  }
  if (status.ok()) {
    status = directory->WriteFile(
        "tokenizer.model",
        internal::SyntheticTokenizer::Build(shape.vocab_size));
  }
  if (status.ok()) {
    status =
        WriteTensors(*directory, ModelPlan(shape, *config).tensors(), seed);
  }
  return status.ok() ? directory->Commit() : status;
}

}  // namespace binarymos
