#include "engine/model/weights.h"

#include <array>
#include <cstddef>
#include <cstring>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace binarymos {
namespace {

// Views of the tensors of one block; `linears` in the order of BlockLinears.
struct LayerTensors {
  ConstTensorView input_norm;
  ConstTensorView post_attention_norm;
  std::array<LinearTensors, 7> linears;
};

struct ModelTensors {
  LinearTensors embed_tokens;
  std::vector<LayerTensors> layers;
  ConstTensorView final_norm;
  LinearTensors lm_head;  // without weight if tied
};

// In the order of BlockLinears.
constexpr std::array kMembers = {
    &LlamaLayerWeights::q_proj,    &LlamaLayerWeights::k_proj,
    &LlamaLayerWeights::v_proj,    &LlamaLayerWeights::o_proj,
    &LlamaLayerWeights::gate_proj, &LlamaLayerWeights::up_proj,
    &LlamaLayerWeights::down_proj,
};

struct LinearShape {
  int64_t in = 0;
  int64_t out = 0;
};

std::string LayerPrefix(int layer) {
  return absl::StrCat("model.layers.", layer, ".");
}

// Looks tensors up, remembers the first that is not as expected and which were
// asked for.
class Collector {
 public:
  explicit Collector(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  const absl::Status& status() const { return status_; }
  int64_t num_parameters() const { return num_parameters_; }
  size_t bytes() const { return bytes_; }  // of all tensors

  ConstTensorView Required(const std::string& name, DType dtype, Shape shape) {
    if (!status_.ok()) return {};
    const std::string expected =
        absl::StrCat("expected ", Name(dtype), " ", shape.ToString());
    if (!checkpoint_.Contains(name)) {
      Fail(name, absl::StrCat("is missing, ", expected));
      return {};
    }
    const Checkpoint::Entry& entry = checkpoint_.tensors().find(name)->second;
    if (entry.dtype != Name(dtype) || entry.shape != shape) {
      const bool is_wide = entry.dtype == "BF16" || entry.dtype == "F32";
      const char* hint = is_wide && dtype == DType::kF16
                             ? " (see `binarymos convert --method float16`)"
                             : "";
      Fail(name, absl::StrCat("is ", entry.dtype, " ", entry.shape.ToString(),
                              ", ", expected, hint));
      return {};
    }
    used_.insert(name);
    bytes_ += entry.bytes;
    return {entry.data, dtype, shape, Device::kHost};
  }

  ConstTensorView Norm(const std::string& name, int64_t size) {
    num_parameters_ += size;
    return Required(name, DType::kF16, {size});
  }

  LinearTensors Float16(const std::string& name, LinearShape shape, bool bias) {
    LinearTensors tensors{.kind = LinearKind::kFloat16,
                          .in_features = shape.in,
                          .out_features = shape.out,
                          .num_experts = 0};
    tensors.weight =
        Required(name + ".weight", DType::kF16, {shape.out, shape.in});
    if (bias) tensors.bias = Bias(name, shape);
    num_parameters_ += shape.in * shape.out;
    return tensors;
  }

  LinearTensors BinaryMos(const std::string& name, LinearShape shape,
                          int num_experts, bool bias) {
    const int64_t experts = num_experts;
    LinearTensors tensors{.kind = LinearKind::kBinaryMos,
                          .in_features = shape.in,
                          .out_features = shape.out,
                          .num_experts = num_experts};
    tensors.sign =
        Required(name + ".sign", DType::kU8, {shape.out, shape.in / 8});
    tensors.in_scale =
        Required(name + ".in_scale", DType::kF16, {experts, shape.in});
    tensors.out_scale =
        Required(name + ".out_scale", DType::kF16, {experts, shape.out});
    num_parameters_ += shape.in * shape.out + experts * (shape.in + shape.out);
    if (experts > 1 || checkpoint_.Contains(name + ".gate")) {
      tensors.gate = Required(name + ".gate", DType::kF16, {experts, shape.in});
      num_parameters_ += experts * shape.in;
    }
    if (bias) tensors.bias = Bias(name, shape);
    return tensors;
  }

  // A tied lm_head that is stored all the same must be the embedding.
  void TiedHead(const std::string& name, const ConstTensorView& embedding) {
    if (!status_.ok() || !checkpoint_.Contains(name)) return;
    const ConstTensorView head =
        Required(name, embedding.dtype, embedding.shape);
    if (head && std::memcmp(head.data, embedding.data, head.bytes()) != 0) {
      Fail(name,
           "differs from model.embed_tokens.weight, expected the same values "
           "or none because of tie_word_embeddings");
    }
  }

  // Every tensor must have been asked for.
  void CheckNothingIsLeft() {
    if (status_.ok()) status_ = CheckAllUsed(checkpoint_, used_);
  }

 private:
  ConstTensorView Bias(const std::string& name, LinearShape shape) {
    num_parameters_ += shape.out;
    return Required(name + ".bias", DType::kF16, {shape.out});
  }

  void Fail(const std::string& name, const std::string& what) {
    status_ = absl::InvalidArgumentError(absl::StrCat(
        checkpoint_.FileOf(name), ": tensor \"", name, "\" ", what));
  }

  const Checkpoint& checkpoint_;
  absl::Status status_;
  std::set<std::string> used_;
  int64_t num_parameters_ = 0;
  size_t bytes_ = 0;
};

LayerTensors CollectLayer(const LlamaConfig& config, int layer,
                          Collector& collector) {
  const std::string prefix = LayerPrefix(layer);
  const std::array<BlockLinear, 7> linears = BlockLinears(config);
  LayerTensors tensors;
  tensors.input_norm =
      collector.Norm(prefix + "input_layernorm.weight", config.hidden_size);
  tensors.post_attention_norm = collector.Norm(
      prefix + "post_attention_layernorm.weight", config.hidden_size);
  for (size_t i = 0; i < linears.size(); ++i) {
    const std::string name = prefix + linears[i].name;
    const LinearShape shape = {linears[i].in_features, linears[i].out_features};
    const bool bias = linears[i].bias;
    tensors.linears[i] =
        config.quant_method == QuantMethod::kBinaryMos
            ? collector.BinaryMos(name, shape, config.num_experts, bias)
            : collector.Float16(name, shape, bias);
  }
  return tensors;
}

ModelTensors Collect(const LlamaConfig& config, Collector& collector) {
  const LinearShape vocab = {config.hidden_size, config.vocab_size};
  ModelTensors tensors;
  tensors.embed_tokens =
      collector.Float16("model.embed_tokens", vocab, /*bias=*/false);
  for (int i = 0; i < config.num_layers && collector.status().ok(); ++i) {
    tensors.layers.push_back(CollectLayer(config, i, collector));
  }
  tensors.final_norm = collector.Norm("model.norm.weight", config.hidden_size);
  if (config.tie_word_embeddings) {
    collector.TiedHead("lm_head.weight", tensors.embed_tokens.weight);
  } else {
    tensors.lm_head = collector.Float16("lm_head", vocab, /*bias=*/false);
  }
  collector.CheckNothingIsLeft();
  return tensors;
}

// Moves tensors to the backend and gives the mapped pages back.
class Packer {
 public:
  Packer(const Checkpoint& checkpoint, Backend& backend)
      : checkpoint_(checkpoint), backend_(backend) {}

  const absl::Status& status() const { return status_; }
  int64_t bytes() const { return bytes_; }

  std::unique_ptr<PackedLinear> Linear(const std::string& name,
                                       const LinearTensors& tensors) {
    if (!status_.ok()) return nullptr;
    auto packed = backend_.Pack(tensors);
    if (!packed.ok()) {
      Fail(name, packed.status());
      return nullptr;
    }
    bytes_ += static_cast<int64_t>((*packed)->bytes());
    for (const ConstTensorView& view :
         {tensors.weight, tensors.sign, tensors.gate, tensors.in_scale,
          tensors.out_scale, tensors.bias}) {
      checkpoint_.Release(view);
    }
    return *std::move(packed);
  }

  Tensor Vector(const std::string& name, const ConstTensorView& host) {
    if (!status_.ok()) return {};
    absl::StatusOr<Tensor> tensor = backend_.Upload(host);
    if (!tensor.ok()) {
      Fail(name, tensor.status());
      return {};
    }
    bytes_ += static_cast<int64_t>(tensor->bytes());
    return *std::move(tensor);
  }

 private:
  void Fail(const std::string& name, const absl::Status& status) {
    status_ = absl::Status(
        status.code(), absl::StrCat("loading ", name, " after ", bytes_,
                                    " bytes of weights: ", status.message()));
  }

  const Checkpoint& checkpoint_;
  Backend& backend_;
  absl::Status status_;
  int64_t bytes_ = 0;
};

LlamaLayerWeights PackLayer(const LlamaConfig& config, int layer,
                            const LayerTensors& tensors, Packer& packer) {
  const std::string prefix = LayerPrefix(layer);
  LlamaLayerWeights weights;
  weights.input_norm =
      packer.Vector(prefix + "input_layernorm", tensors.input_norm);
  weights.post_attention_norm = packer.Vector(
      prefix + "post_attention_layernorm", tensors.post_attention_norm);
  const std::array<BlockLinear, 7> linears = BlockLinears(config);
  for (size_t i = 0; i < linears.size(); ++i) {
    weights.*kMembers[i] =
        packer.Linear(prefix + linears[i].name, tensors.linears[i]);
  }
  return weights;
}

// What is held is about what is stored (DESIGN section 4).
absl::Status CheckFits(size_t bytes, const Checkpoint& checkpoint,
                       const Backend& backend) {
  const absl::StatusOr<size_t> available = backend.AvailableMemory();
  if (!available.ok()) return available.status();
  if (bytes <= *available) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      checkpoint.files().front(), ": the weights take ", bytes,
      " bytes, but only ", *available, " bytes can be had on ",
      backend.description(), ": ", bytes - *available,
      " are missing; free memory, raise --gpu-memory-utilization if this is a "
      "CUDA device, or use another"));
}

double BitsPerWeight(const std::vector<LlamaLayerWeights>& layers) {
  double bits = 0;
  double elements = 0;
  for (const LlamaLayerWeights& layer : layers) {
    for (const auto member : kMembers) {
      const PackedLinear& linear = *(layer.*member);
      bits += 8.0 * static_cast<double>(linear.bytes());
      elements += static_cast<double>(linear.in_features()) *
                  static_cast<double>(linear.out_features());
    }
  }
  return bits / elements;
}

}  // namespace

std::array<BlockLinear, 7> BlockLinears(const LlamaConfig& config) {
  const int64_t hidden = config.hidden_size;
  const int64_t ffn = config.intermediate_size;
  const int64_t q = config.q_size();
  const int64_t kv = config.kv_size();
  return {{{"self_attn.q_proj", hidden, q, config.attention_bias},
           {"self_attn.k_proj", hidden, kv, config.attention_bias},
           {"self_attn.v_proj", hidden, kv, config.attention_bias},
           {"self_attn.o_proj", q, hidden, config.attention_bias},
           {"mlp.gate_proj", hidden, ffn, config.mlp_bias},
           {"mlp.up_proj", hidden, ffn, config.mlp_bias},
           {"mlp.down_proj", ffn, hidden, config.mlp_bias}}};
}

absl::StatusOr<LlamaWeights> LlamaWeights::Load(const Checkpoint& checkpoint,
                                                const LlamaConfig& config,
                                                Backend& backend,
                                                LinearKind head) {
  Collector collector(checkpoint);
  const ModelTensors tensors = Collect(config, collector);
  if (!collector.status().ok()) return collector.status();
  absl::Status fits = CheckFits(collector.bytes(), checkpoint, backend);
  if (!fits.ok()) return fits;

  Packer packer(checkpoint, backend);
  LlamaWeights weights;
  weights.embed_tokens =
      packer.Linear("model.embed_tokens", tensors.embed_tokens);
  for (int i = 0; i < config.num_layers && packer.status().ok(); ++i) {
    weights.layers.push_back(PackLayer(config, i, tensors.layers[i], packer));
  }
  weights.final_norm = packer.Vector("model.norm", tensors.final_norm);
  LinearTensors lm_head =
      config.tie_word_embeddings ? tensors.embed_tokens : tensors.lm_head;
  lm_head.kind = head;
  if (!config.tie_word_embeddings || head != LinearKind::kFloat16) {
    weights.lm_head = packer.Linear("lm_head", lm_head);
  }
  if (!packer.status().ok()) return packer.status();
  weights.num_parameters = collector.num_parameters();
  weights.bytes = packer.bytes();
  weights.bits_per_weight = BitsPerWeight(weights.layers);
  return weights;
}

absl::Status CheckWeights(const Checkpoint& checkpoint,
                          const LlamaConfig& config) {
  Collector collector(checkpoint);
  Collect(config, collector);
  return collector.status();
}

absl::Status CheckAllUsed(const Checkpoint& checkpoint,
                          const std::set<std::string>& used) {
  for (const auto& [name, entry] : checkpoint.tensors()) {
    // Old LLaMA files hold the rotation's frequencies; they are computed.
    const bool ignored = absl::EndsWith(name, ".rotary_emb.inv_freq");
    if (used.contains(name) || ignored) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(checkpoint.FileOf(name), ": tensor \"", name, "\" ",
                     absl::EndsWith(name, ".bias")
                         ? "is not expected: config.json has no such bias "
                           "(attention_bias, mlp_bias)"
                         : "is not expected in this model"));
  }
  return absl::OkStatus();
}

}  // namespace binarymos
