#include "tests/engine/training_checkpoint.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <random>
#include <span>

#include "absl/strings/str_cat.h"
#include "engine/core/check.h"
#include "engine/core/float16.h"
#include "tests/engine/model/model_directory.h"

namespace binarymos {
namespace {

template <typename Bits>
void Append(std::string& data, Bits bits) {
  data.append(reinterpret_cast<const char*>(&bits), sizeof(bits));
}

std::string File(std::span<const FloatTensor> tensors) {
  std::vector<TestTensor> header;
  std::string data;
  for (const FloatTensor& tensor : tensors) {
    header.push_back({tensor.name, tensor.dtype, tensor.shape});
    for (const float value : tensor.values) {
      const auto bits = std::bit_cast<uint32_t>(value);
      if (tensor.dtype == "F32") {
        Append(data, bits);
      } else if (tensor.dtype == "BF16") {
        Append(data, static_cast<uint16_t>(bits >> 16));
      } else {
        Append(data, FloatToHalf(value));
      }
    }
  }
  return SafetensorsFile(PaddedHeader(HeaderOf(header)), data);
}

// Collects tensors with random values.
class Builder {
 public:
  explicit Builder(std::vector<FloatTensor>& tensors) : tensors_(tensors) {}

  void Add(const std::string& name, std::vector<int64_t> shape, float low,
           float high) {
    FloatTensor tensor{name, "F16", std::move(shape), {}};
    int64_t size = 1;
    for (const int64_t dim : tensor.shape) size *= dim;
    for (int64_t i = 0; i < size; ++i) {
      tensor.values.push_back(Value(low, high));
    }
    tensors_.push_back(std::move(tensor));
  }

 private:
  // With 8 significant bits, and not zero.
  float Value(float low, float high) {
    for (;;) {
      const auto unit = static_cast<float>(random_() % 65536) / 65536;
      const float value = low + unit * (high - low);
      const float rounded =
          std::bit_cast<float>(std::bit_cast<uint32_t>(value) & 0xffff0000u);
      if (std::abs(rounded) > 1e-4f) return rounded;
    }
  }

  std::mt19937 random_{17};
  std::vector<FloatTensor>& tensors_;
};

}  // namespace

FloatTensor& TrainingCheckpoint::tensor(const std::string& name) {
  const auto it =
      std::find_if(tensors.begin(), tensors.end(),
                   [&](const FloatTensor& t) { return t.name == name; });
  BINARYMOS_CHECK(it != tensors.end()) << name;
  return *it;
}

void TrainingCheckpoint::SetDType(const std::string& dtype) {
  for (FloatTensor& tensor : tensors) tensor.dtype = dtype;
}

void TrainingCheckpoint::WriteTo(const TempDir& dir, int num_shards) const {
  dir.Write("config.json", config.dump());
  if (num_shards == 1) {
    dir.Write("model.safetensors", File(tensors));
    return;
  }
  nlohmann::json index;
  const size_t size = (tensors.size() + num_shards - 1) / num_shards;
  for (size_t begin = 0; begin < tensors.size(); begin += size) {
    const auto shard = std::span(tensors).subspan(
        begin, std::min(size, tensors.size() - begin));
    const std::string name = absl::StrCat("part-", begin, ".safetensors");
    dir.Write(name, File(shard));
    for (const FloatTensor& tensor : shard) {
      index["weight_map"][tensor.name] = name;
    }
  }
  dir.Write("model.safetensors.index.json", index.dump());
}

TrainingCheckpoint MakeTrainingCheckpoint(int num_expert) {
  TrainingCheckpoint checkpoint;
  checkpoint.config = nlohmann::json::parse(R"({
    "architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "hidden_act": "silu", "hidden_size": 24, "intermediate_size": 40,
    "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6, "vocab_size": 16,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "bos_token_id": 1,
    "eos_token_id": 2, "torch_dtype": "float16", "attention_bias": true})");
  if (num_expert > 0) checkpoint.config["num_expert"] = num_expert;
  Builder builder(checkpoint.tensors);
  builder.Add("model.embed_tokens.weight", {16, 24}, -1, 1);
  for (int layer = 0; layer < 2; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    const auto linear = [&](const std::string& part, int64_t in, int64_t out,
                            bool bias) {
      const std::string name = prefix + part;
      builder.Add(name + ".weight", {out, in}, -0.3f, 0.3f);
      if (bias) builder.Add(name + ".bias", {out}, -0.1f, 0.1f);
      if (num_expert == 0) return;
      builder.Add(name + ".gate_linear.weight", {num_expert, in}, -0.2f, 0.2f);
      builder.Add(name + ".in_channel_scale", {num_expert, in}, 0.5f, 1.5f);
      builder.Add(name + ".out_channel_scale", {num_expert, out}, 0.1f, 0.3f);
    };
    builder.Add(prefix + "input_layernorm.weight", {24}, 0.8f, 1.2f);
    linear("self_attn.q_proj", 24, 24, true);
    linear("self_attn.k_proj", 24, 12, true);
    linear("self_attn.v_proj", 24, 12, true);
    linear("self_attn.o_proj", 24, 24, true);
    builder.Add(prefix + "post_attention_layernorm.weight", {24}, 0.8f, 1.2f);
    linear("mlp.gate_proj", 24, 40, false);
    linear("mlp.up_proj", 24, 40, false);
    linear("mlp.down_proj", 40, 24, false);
  }
  builder.Add("model.norm.weight", {24}, 0.8f, 1.2f);
  builder.Add("lm_head.weight", {16, 24}, -0.4f, 0.4f);
  return checkpoint;
}

}  // namespace binarymos
