#include "tests/engine/model/model_directory.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "engine/core/check.h"

namespace binarymos {

size_t TestTensor::bytes() const {
  int64_t product = dtype == "U8" ? 1 : dtype.ends_with("F16") ? 2 : 4;
  for (const int64_t dim : shape) product *= dim;
  return static_cast<size_t>(product);
}

std::string SafetensorsFile(const std::string& header,
                            const std::string& data) {
  const uint64_t length = header.size();
  std::string file(sizeof(length), '\0');
  std::memcpy(file.data(), &length, sizeof(length));
  return file + header + data;
}

nlohmann::json HeaderOf(const std::vector<TestTensor>& tensors) {
  nlohmann::json header = nlohmann::json::object();
  size_t offset = 0;
  for (const TestTensor& tensor : tensors) {
    nlohmann::json& entry = header[tensor.name];
    entry["dtype"] = tensor.dtype;
    entry["shape"] = tensor.shape;
    entry["data_offsets"].push_back(offset);
    entry["data_offsets"].push_back(offset + tensor.bytes());
    offset += tensor.bytes();
  }
  return header;
}

std::string PaddedHeader(const nlohmann::json& header) {
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return text;
}

std::string DataOf(const std::vector<TestTensor>& tensors) {
  size_t bytes = 0;
  for (const TestTensor& tensor : tensors) bytes += tensor.bytes();
  std::string data(bytes, '\0');
  for (size_t i = 0; i < bytes; ++i) data[i] = static_cast<char>(i % 251);
  return data;
}

std::string Serialize(const std::vector<TestTensor>& tensors) {
  return SafetensorsFile(PaddedHeader(HeaderOf(tensors)), DataOf(tensors));
}

ModelDirectory::ModelDirectory() {
  config = nlohmann::json::parse(R"({
    "architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "hidden_act": "silu", "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "vocab_size": 10, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "bos_token_id": 1, "eos_token_id": 2,
    "quantization_config":
        {"quant_method": "binarymos", "num_experts": 2, "version": 1}})");
  const auto linear = [&](const std::string& name, int64_t in, int64_t out) {
    const std::string path = "model.layers.0." + name;
    tensors.push_back({path + ".gate", "F16", {2, in}});
    tensors.push_back({path + ".in_scale", "F16", {2, in}});
    tensors.push_back({path + ".out_scale", "F16", {2, out}});
    tensors.push_back({path + ".sign", "U8", {out, in / 8}});
  };
  tensors.push_back({"model.embed_tokens.weight", "F16", {10, 16}});
  tensors.push_back({"model.norm.weight", "F16", {16}});
  tensors.push_back({"lm_head.weight", "F16", {10, 16}});
  tensors.push_back({"model.layers.0.input_layernorm.weight", "F16", {16}});
  tensors.push_back(
      {"model.layers.0.post_attention_layernorm.weight", "F16", {16}});
  linear("self_attn.q_proj", 16, 16);
  linear("self_attn.k_proj", 16, 8);
  linear("self_attn.v_proj", 16, 8);
  linear("self_attn.o_proj", 16, 16);
  linear("mlp.gate_proj", 16, 24);
  linear("mlp.up_proj", 16, 24);
  linear("mlp.down_proj", 24, 16);
}

void ModelDirectory::MakeFloat16() {
  config.erase("quantization_config");
  std::vector<TestTensor> kept;
  for (const TestTensor& tensor : tensors) {
    const size_t dot = tensor.name.rfind('.');
    const std::string kind = tensor.name.substr(dot);
    if (kind == ".sign") {
      kept.push_back({tensor.name.substr(0, dot) + ".weight",
                      "F16",
                      {tensor.shape[0], tensor.shape[1] * 8}});
    } else if (kind == ".weight") {
      kept.push_back(tensor);
    }
  }
  tensors = std::move(kept);
}

TestTensor& ModelDirectory::tensor(const std::string& name) {
  const auto it =
      std::find_if(tensors.begin(), tensors.end(),
                   [&](const TestTensor& t) { return t.name == name; });
  BINARYMOS_CHECK(it != tensors.end()) << name;
  return *it;
}

void ModelDirectory::Remove(const std::string& name) {
  std::erase_if(tensors, [&](const TestTensor& t) { return t.name == name; });
}

void ModelDirectory::WriteTo(const TempDir& dir) const {
  dir.Write("config.json", config.dump());
  dir.Write("model.safetensors", Serialize(tensors));
}

}  // namespace binarymos
