// Writes model directories with random weights, for demonstrations, benchmarks
// and tests.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace binarymos {

// What to synthesize; the defaults are the shape "tiny". Names and ranges as in
// engine/model/llama_config.h.
struct SyntheticShape {
  int hidden_size = 256;
  int intermediate_size = 512;
  int num_layers = 4;
  int num_heads = 4;
  int num_kv_heads = 2;
  int head_dim = 0;      // 0: hidden_size / num_heads
  int vocab_size = 512;  // at least kMinSyntheticVocab
  int max_position_embeddings = 2048;
  double rms_norm_eps = 1e-5;
  double rope_theta = 10000.0;
  std::string rope_scaling = "none";  // "none", "linear", "dynamic"
  double rope_factor = 1.0;
  bool tie_word_embeddings = false;
  bool attention_bias = false;
  bool mlp_bias = false;
  // "float16" has no experts; "binarymos-training" is the published layout,
  // with latent weights, which `binarymos convert` reads.
  std::string quant_method = "binarymos";
  int num_experts = 4;
  bool router = true;  // false: no gate tensors; needs num_experts = 1
};

// <unk>, <s>, </s>, 256 bytes and the single characters of printable ASCII.
inline constexpr int kMinSyntheticVocab = 384;

// "tiny" (3 M parameters), "1b" (TinyLlama's shape), "7b" and "13b" (those of
// LLaMA-2). NOT_FOUND listing the names for any other.
absl::StatusOr<SyntheticShape> SyntheticShapeByName(std::string_view name);

// Writes a complete model directory: config.json, generation_config.json,
// model.safetensors and tokenizer.model ("binarymos-training": a source for
// `binarymos convert`). The text that such a model produces is
// noise; its activations keep the scale of a trained model's. The same shape
// and seed give the same bytes. Appears at `model_dir` whole or not at all.
// Needs little memory for any shape.
//
// INVALID_ARGUMENT for a shape that is out of range, ALREADY_EXISTS if
// `model_dir` exists and is not an empty directory, NOT_FOUND if its parent
// does not exist, RESOURCE_EXHAUSTED if the disk is full, PERMISSION_DENIED or
// INTERNAL for other failures of writing.
absl::Status SynthesizeModel(const std::string& model_dir,
                             const SyntheticShape& shape, uint64_t seed);

}  // namespace binarymos
