// The weights of a LLaMA model, packed for a backend.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/backend/backend.h"
#include "engine/core/tensor.h"
#include "engine/model/checkpoint.h"
#include "engine/model/llama_config.h"

namespace binarymos {

// A linear layer of a decoder block, as files name it.
struct BlockLinear {
  const char* name;  // "self_attn.q_proj"
  int64_t in_features;
  int64_t out_features;
  bool bias;
};

// The seven of every block: q, k, v, o, gate, up, down.
std::array<BlockLinear, 7> BlockLinears(const LlamaConfig& config);

// One decoder block.
struct LlamaLayerWeights {
  Tensor input_norm;                        // [hidden] f16, device
  Tensor post_attention_norm;               // [hidden] f16, device
  std::unique_ptr<PackedLinear> q_proj;     // hidden → q_size
  std::unique_ptr<PackedLinear> k_proj;     // hidden → kv_size
  std::unique_ptr<PackedLinear> v_proj;     // hidden → kv_size
  std::unique_ptr<PackedLinear> o_proj;     // q_size → hidden
  std::unique_ptr<PackedLinear> gate_proj;  // hidden → intermediate
  std::unique_ptr<PackedLinear> up_proj;    // hidden → intermediate
  std::unique_ptr<PackedLinear> down_proj;  // intermediate → hidden
};

// Owned by the model; constant after Load. Must not outlive the backend.
struct LlamaWeights {
  std::unique_ptr<PackedLinear> embed_tokens;  // [vocab, hidden], Float16
  std::vector<LlamaLayerWeights> layers;
  Tensor final_norm;                      // [hidden] f16, device
  std::unique_ptr<PackedLinear> lm_head;  // null: embed_tokens is used

  // Elements of all tensors; a sign counts as one.
  int64_t num_parameters = 0;
  // Held by the backend, its padding and tables included.
  int64_t bytes = 0;
  // Of the linear layers in the blocks, as held by the backend: bits of
  // weights, scales, gates and biases per element of W.
  double bits_per_weight = 0;

  // hidden → vocab.
  const PackedLinear& output() const {
    return lm_head != nullptr ? *lm_head : *embed_tokens;
  }

  // Checks that `checkpoint` holds exactly the tensors that `config` calls for
  // and packs them, giving back the mapped pages as it goes. INVALID_ARGUMENT
  // naming file, tensor and what was expected if one is missing, superfluous or
  // has another dtype or shape; RESOURCE_EXHAUSTED, with the arithmetic, if the
  // tensors are larger than the memory that the backend has, and if it runs out
  // of it all the same.
  static absl::StatusOr<LlamaWeights> Load(
      const Checkpoint& checkpoint, const LlamaConfig& config, Backend& backend,
      LinearKind head = LinearKind::kFloat16);
};

// The checks of LlamaWeights::Load alone, in microseconds: nothing is read but
// the header that `checkpoint` holds (and a tied lm_head that is stored
// anyway).
absl::Status CheckWeights(const Checkpoint& checkpoint,
                          const LlamaConfig& config);

// INVALID_ARGUMENT, naming file and tensor, if `checkpoint` has a tensor that
// is not in `used`: a model with weights that nobody reads is not the model
// meant.
absl::Status CheckAllUsed(const Checkpoint& checkpoint,
                          const std::set<std::string>& used);

}  // namespace binarymos
