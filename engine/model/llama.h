// The LLaMA decoder, written once against Backend.
#pragma once

#include <functional>
#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "engine/backend/backend.h"
#include "engine/core/tensor.h"
#include "engine/model/llama_config.h"
#include "engine/model/weights.h"

namespace binarymos {

// The largest step that a model computes; activations are allocated for it.
struct LlamaLimits {
  int max_model_len = 0;   // positions that the rotation table covers
  int max_tokens = 0;      // tokens of one Forward
  int max_logit_rows = 0;  // rows of one Logits
};

// Weights, rotation table and activations of a model on one device. Owned by
// the Engine; confined to the serving-loop thread. The backend outlives it.
class LlamaModel {
 public:
  // RESOURCE_EXHAUSTED if the device does not have the memory.
  static absl::StatusOr<std::unique_ptr<LlamaModel>> Create(
      const LlamaConfig& config, LlamaWeights weights,
      const LlamaLimits& limits, Backend& backend);

  // Computes the batch: writes keys and values of its tokens to `kv`
  // ([num_layers]) and leaves the final hidden states of batch.logit_rows
  // behind for Logits. Calls `after_layer`, if it is set, after every layer,
  // or not at all where the backend replays a recording.
  // With `sum_gates`, gate_sums() is filled.
  // REQUIRES: between BeginStep(batch) and EndStep of the backend;
  // 1 <= batch.num_tokens() <= max_tokens.
  void Forward(const BatchView& batch, std::span<const KvLayer> kv,
               bool sum_gates, const std::function<void()>& after_layer);

  // Logits of entries [begin, end) of the last Forward's logit_rows:
  // [end - begin, vocab] f32, device; valid until the next call of Logits.
  // REQUIRES: as Forward; end - begin <= max_logit_rows.
  ConstTensorView Logits(int begin, int end);

  // The routers' softmax, summed over the tokens of the last Forward with
  // `sum_gates` and over the routed linears of a layer:
  // [num_layers, num_experts] f32, device. Absent if the model has no router.
  ConstTensorView gate_sums() const { return gate_sums_.view(); }
  // Routed linears of one layer.
  static constexpr int kLinearsPerLayer = 7;

  const LlamaConfig& config() const { return config_; }
  const LlamaLimits& limits() const { return limits_; }
  const LlamaWeights& weights() const { return weights_; }

 private:
  // Views of the step's rows. All f32, device.
  struct Activations {
    TensorView hidden;     // [num_tokens, hidden] the residual stream
    TensorView normed;     // [num_tokens, hidden]
    TensorView q;          // [num_tokens, q_size]
    TensorView k;          // [num_tokens, kv_size]
    TensorView v;          // [num_tokens, kv_size]
    TensorView attention;  // [num_tokens, q_size]
    TensorView gate;       // [num_tokens, intermediate]
    TensorView up;         // [num_tokens, intermediate]

    Activations FirstRows(int num_tokens) const;
  };

  LlamaModel(const LlamaConfig& config, LlamaWeights weights,
             const LlamaLimits& limits, Backend& backend);

  absl::Status Allocate();
  absl::StatusOr<TensorView> AllocateActivation(int64_t width);
  bool has_router() const;

  void Layer(int layer, const Activations& a, const KvLayer& kv,
             const TensorView& gates);

  LlamaConfig config_;
  LlamaWeights weights_;
  LlamaLimits limits_;
  Backend& backend_;
  AttentionShape attention_shape_;

  Tensor rope_cos_;  // [max_model_len, head_dim / 2] f32
  Tensor rope_sin_;  // same
  std::vector<Tensor> memory_;
  Activations activations_;  // for max_tokens; views of memory_
  Tensor logits_;            // [max_logit_rows, vocab] f32
  Tensor gate_sums_;         // [num_layers, num_experts] f32
};

}  // namespace binarymos
