#include "engine/model/llama.h"

#include <algorithm>
#include <initializer_list>
#include <utility>
#include <vector>

#include "engine/core/check.h"
#include "engine/model/rope_table.h"

namespace binarymos {
namespace {

using Output = Backend::Output;

ConstTensorView RopeView(const std::vector<float>& values, int max_model_len,
                         int head_dim) {
  return {values.data(), DType::kF32, Shape{max_model_len, head_dim / 2},
          Device::kHost};
}

}  // namespace

void LlamaModel::Forward(const BatchView& batch, std::span<const KvLayer> kv,
                         bool sum_gates,
                         const std::function<void()>& after_layer) {
  const Activations a = activations_.FirstRows(batch.num_tokens());
  const bool sum = sum_gates && has_router();
  const RepeatKey key{this, kv[0].keys.data, sum ? 1 : 0};
  backend_.Repeat(key, [&] {
    if (sum) backend_.Zero(gate_sums_.view());
    backend_.Embed(*weights_.embed_tokens, a.hidden);
    for (int layer = 0; layer < config_.num_layers; ++layer) {
      const TensorView gates =
          sum ? gate_sums_.view().Row(layer) : TensorView{};
      Layer(layer, a, kv[layer], gates);
      if (after_layer) after_layer();
    }
    if (batch.num_logit_rows() == 0) return;
    const TensorView last = a.normed.FirstRows(batch.num_logit_rows());
    backend_.GatherLogitRows(a.hidden, last);
    backend_.RmsNorm(last, weights_.final_norm.view(), config_.rms_norm_eps,
                     last);
  });
}

void LlamaModel::Layer(int layer, const Activations& a, const KvLayer& kv,
                       const TensorView& gates) {
  const LlamaLayerWeights& w = weights_.layers[layer];
  const RopeTable rope{rope_cos_.view(), rope_sin_.view()};
  const auto norm_and_linears =
      [&](const Tensor& norm,
          std::initializer_list<Backend::LinearTask> tasks) {
        backend_.RmsNormAndLinears(a.hidden, norm.view(), config_.rms_norm_eps,
                                   a.normed, {tasks.begin(), tasks.size()});
      };

  norm_and_linears(w.input_norm, {{w.q_proj.get(), a.q, gates},
                                  {w.k_proj.get(), a.k, gates},
                                  {w.v_proj.get(), a.v, gates}});
  backend_.RopeAndAttention(attention_shape_, rope, a.q, a.k, a.v, kv,
                            a.attention);
  backend_.Linear(*w.o_proj, a.attention, Output::kAccumulate, a.hidden, gates);

  norm_and_linears(w.post_attention_norm, {{w.gate_proj.get(), a.gate, gates},
                                           {w.up_proj.get(), a.up, gates}});
  backend_.SwiGluAndLinear(a.gate, a.up, *w.down_proj, Output::kAccumulate,
                           a.hidden, gates);
}

ConstTensorView LlamaModel::Logits(int begin, int end) {
  BINARYMOS_CHECK(begin >= 0 && begin < end &&
                  end - begin <= limits_.max_logit_rows)
      << begin << ", " << end;
  TensorView rows = activations_.normed.FirstRows(end - begin);
  rows.data = activations_.normed.Row(begin).data;
  const TensorView logits = logits_.view().FirstRows(end - begin);
  backend_.Linear(weights_.output(), rows, Output::kStore, logits, {});
  return logits;
}

LlamaModel::Activations LlamaModel::Activations::FirstRows(
    int num_tokens) const {
  return {hidden.FirstRows(num_tokens), normed.FirstRows(num_tokens),
          q.FirstRows(num_tokens),      k.FirstRows(num_tokens),
          v.FirstRows(num_tokens),      attention.FirstRows(num_tokens),
          gate.FirstRows(num_tokens),   up.FirstRows(num_tokens)};
}

absl::StatusOr<std::unique_ptr<LlamaModel>> LlamaModel::Create(
    const LlamaConfig& config, LlamaWeights weights, const LlamaLimits& limits,
    Backend& backend) {
  std::unique_ptr<LlamaModel> model(
      new LlamaModel(config, std::move(weights), limits, backend));
  if (absl::Status status = model->Allocate(); !status.ok()) return status;
  return model;
}

LlamaModel::LlamaModel(const LlamaConfig& config, LlamaWeights weights,
                       const LlamaLimits& limits, Backend& backend)
    : config_(config),
      weights_(std::move(weights)),
      limits_(limits),
      backend_(backend),
      attention_shape_{config.num_heads, config.num_kv_heads, config.head_dim} {
}

bool LlamaModel::has_router() const {
  return std::any_of(weights_.layers.begin(), weights_.layers.end(),
                     [](const LlamaLayerWeights& layer) {
                       return layer.q_proj->num_experts() > 0;
                     });
}

absl::StatusOr<TensorView> LlamaModel::AllocateActivation(int64_t width) {
  absl::StatusOr<Tensor> tensor =
      backend_.Allocate(DType::kF32, Shape{limits_.max_tokens, width});
  if (!tensor.ok()) return tensor.status();
  memory_.push_back(*std::move(tensor));
  return memory_.back().view();
}

absl::Status LlamaModel::Allocate() {
  const RopeAngles angles = ComputeRopeAngles(config_, limits_.max_model_len);
  const struct {
    const std::vector<float>& values;
    Tensor& tensor;
  } tables[] = {{angles.cos, rope_cos_}, {angles.sin, rope_sin_}};
  for (const auto& table : tables) {
    absl::StatusOr<Tensor> tensor = backend_.Upload(
        RopeView(table.values, limits_.max_model_len, config_.head_dim));
    if (!tensor.ok()) return tensor.status();
    table.tensor = *std::move(tensor);
  }

  const struct {
    int64_t width;
    TensorView& view;
  } activations[] = {
      {config_.hidden_size, activations_.hidden},
      {config_.hidden_size, activations_.normed},
      {config_.q_size(), activations_.q},
      {config_.kv_size(), activations_.k},
      {config_.kv_size(), activations_.v},
      {config_.q_size(), activations_.attention},
      {config_.intermediate_size, activations_.gate},
      {config_.intermediate_size, activations_.up},
  };
  for (const auto& activation : activations) {
    absl::StatusOr<TensorView> view = AllocateActivation(activation.width);
    if (!view.ok()) return view.status();
    activation.view = *view;
  }

  absl::StatusOr<Tensor> logits = backend_.Allocate(
      DType::kF32, Shape{limits_.max_logit_rows, config_.vocab_size});
  if (!logits.ok()) return logits.status();
  logits_ = *std::move(logits);

  if (has_router()) {
    absl::StatusOr<Tensor> sums = backend_.Allocate(
        DType::kF32, Shape{config_.num_layers, config_.num_experts});
    if (!sums.ok()) return sums.status();
    gate_sums_ = *std::move(sums);
  }
  return backend_.Reserve(limits_.max_tokens, limits_.max_logit_rows);
}

}  // namespace binarymos
