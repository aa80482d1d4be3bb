// Hyperparameters of a LLaMA model, as `config.json` states them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace binarymos {

// How the linear layers inside the decoder blocks are stored.
enum class QuantMethod : uint8_t { kFloat16, kBinaryMos };

const char* Name(QuantMethod method);  // "float16", "binarymos"

// How positions beyond the trained ones are reached.
struct RopeScaling {
  enum class Kind : uint8_t { kNone, kLinear, kDynamic };
  Kind kind = Kind::kNone;
  double factor = 1.0;  // >= 1

  friend bool operator==(const RopeScaling&, const RopeScaling&) = default;
};

const char* Name(RopeScaling::Kind kind);  // "none", "linear", "dynamic"

// A plain value. From Load and Parse every field is in the range that is named
// beside it, products of any two sizes fit int64_t, and num_kv_heads divides
// num_heads.
struct LlamaConfig {
  int hidden_size = 0;              // 8 to 65536, a multiple of 8
  int intermediate_size = 0;        // 8 to 524288, a multiple of 8
  int num_layers = 0;               // 1 to 512
  int num_heads = 0;                // 1 to 1024
  int num_kv_heads = 0;             // 1 to num_heads
  int head_dim = 0;                 // 2 to 512, even; num_heads * head_dim is a
                                    // multiple of 8
  int vocab_size = 0;               // 1 to 1048576
  int max_position_embeddings = 0;  // 1 to 16777216
  float rms_norm_eps = 1e-6f;       // in [1e-12, 0.1]
  double rope_theta = 10000.0;      // in [1, 1e12]
  RopeScaling rope_scaling;
  bool tie_word_embeddings = false;
  bool attention_bias = false;      // q, k, v and o have a bias
  bool mlp_bias = false;            // gate, up and down have a bias
  int32_t bos_token = -1;           // -1: none; else below vocab_size
  std::vector<int32_t> eos_tokens;  // may be empty; ascending, no duplicates
  QuantMethod quant_method = QuantMethod::kFloat16;
  int num_experts = 0;  // 1 to 8 for kBinaryMos, 0 for kFloat16

  int q_size() const { return num_heads * head_dim; }
  int kv_size() const { return num_kv_heads * head_dim; }

  // Reads `<model_dir>/config.json` and, for further end-of-sequence tokens,
  // `<model_dir>/generation_config.json` where it exists. NOT_FOUND without a
  // config.json; INVALID_ARGUMENT naming file, key, value and what is allowed;
  // UNIMPLEMENTED for an architecture, activation, scaling or quantization that
  // is well-formed but not ours.
  static absl::StatusOr<LlamaConfig> Load(const std::string& model_dir);

  // The same from text. `file` is for messages.
  static absl::StatusOr<LlamaConfig> Parse(std::string_view json,
                                           const std::string& file);
};

}  // namespace binarymos
