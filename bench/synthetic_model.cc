#include "bench/synthetic_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/random_halves.h"
#include "engine/api/types.h"
#include "engine/model/weights.h"
#include "engine/synthesize.h"

namespace binarymos {
namespace {

LlamaConfig ConfigOf(const SyntheticShape& shape) {
  LlamaConfig config;
  config.hidden_size = shape.hidden_size;
  config.intermediate_size = shape.intermediate_size;
  config.num_layers = shape.num_layers;
  config.num_heads = shape.num_heads;
  config.num_kv_heads = shape.num_kv_heads;
  config.head_dim =
      shape.head_dim > 0 ? shape.head_dim : shape.hidden_size / shape.num_heads;
  config.vocab_size = shape.vocab_size;
  config.max_position_embeddings = shape.max_position_embeddings;
  config.rms_norm_eps = static_cast<float>(shape.rms_norm_eps);
  config.rope_theta = shape.rope_theta;
  config.quant_method = QuantMethod::kBinaryMos;
  config.num_experts = shape.num_experts;
  return config;
}

// Host memory of one tensor after the other, and what packing needs of it.
class RandomWeights {
 public:
  RandomWeights(const LlamaConfig& config, LinearKind head, Backend& backend)
      : config_(config), head_(head), backend_(backend) {}

  absl::StatusOr<LlamaWeights> Make() {
    LlamaWeights weights;
    weights.embed_tokens = Vocabulary(LinearKind::kFloat16, 1.0f);
    weights.lm_head = Vocabulary(
        head_, 1.0f / std::sqrt(static_cast<float>(config_.hidden_size)));
    weights.final_norm = Norm();
    weights.layers.resize(config_.num_layers);
    for (LlamaLayerWeights& layer : weights.layers) {
      layer.input_norm = Norm();
      layer.post_attention_norm = Norm();
    }
    // One set of random numbers per linear of a layer, packed for each layer.
    constexpr std::unique_ptr<PackedLinear> LlamaLayerWeights::*kMembers[] = {
        &LlamaLayerWeights::q_proj,    &LlamaLayerWeights::k_proj,
        &LlamaLayerWeights::v_proj,    &LlamaLayerWeights::o_proj,
        &LlamaLayerWeights::gate_proj, &LlamaLayerWeights::up_proj,
        &LlamaLayerWeights::down_proj};
    const std::array<BlockLinear, 7> linears = BlockLinears(config_);
    for (size_t i = 0; i < linears.size(); ++i) {
      Binary(linears[i], weights.layers, kMembers[i]);
    }
    if (!status_.ok()) return status_;
    return weights;
  }

 private:
  std::unique_ptr<PackedLinear> Pack(const LinearTensors& tensors) {
    if (!status_.ok()) return nullptr;
    auto packed = backend_.Pack(tensors);
    status_.Update(packed.status());
    return packed.ok() ? *std::move(packed) : nullptr;
  }

  std::unique_ptr<PackedLinear> Vocabulary(LinearKind kind, float scale) {
    const int64_t in = config_.hidden_size, out = config_.vocab_size;
    const auto weight = RandomHalves(in * out, scale, ++seed_);
    LinearTensors tensors{
        .kind = kind, .in_features = in, .out_features = out, .num_experts = 0};
    tensors.weight = {weight.data(), DType::kF16, {out, in}};
    return Pack(tensors);
  }

  Tensor Norm() {
    const std::vector<uint16_t> ones(config_.hidden_size, 0x3c00);
    auto norm =
        backend_.Upload({ones.data(), DType::kF16, Shape{config_.hidden_size}});
    status_.Update(norm.status());
    return norm.ok() ? *std::move(norm) : Tensor();
  }

  void Binary(const BlockLinear& linear, std::vector<LlamaLayerWeights>& layers,
              std::unique_ptr<PackedLinear> LlamaLayerWeights::*member) {
    const int64_t in = linear.in_features, out = linear.out_features;
    const int64_t experts = config_.num_experts;
    std::mt19937_64 random(++seed_);
    std::vector<uint64_t> sign(out * in / 64 + 1);
    std::generate(sign.begin(), sign.end(), std::ref(random));
    const auto gate = RandomHalves(
        experts * in, 1.0f / std::sqrt(static_cast<float>(in)), ++seed_);
    const auto in_scale = RandomHalves(experts * in, 1.0f, ++seed_);
    // Keeps activations at the scale of their input.
    const auto out_scale = RandomHalves(
        experts * out, 3.0f / std::sqrt(static_cast<float>(in)), ++seed_);
    LinearTensors tensors{.kind = LinearKind::kBinaryMos,
                          .in_features = in,
                          .out_features = out,
                          .num_experts = config_.num_experts};
    tensors.sign = {sign.data(), DType::kU8, {out, in / 8}};
    tensors.gate = {gate.data(), DType::kF16, {experts, in}};
    tensors.in_scale = {in_scale.data(), DType::kF16, {experts, in}};
    tensors.out_scale = {out_scale.data(), DType::kF16, {experts, out}};
    for (LlamaLayerWeights& layer : layers) layer.*member = Pack(tensors);
  }

  const LlamaConfig& config_;
  const LinearKind head_;
  Backend& backend_;
  absl::Status status_;
  uint64_t seed_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<SyntheticModel>> SyntheticModel::Create(
    const SyntheticModelOptions& options) {
  const auto shape = SyntheticShapeByName(options.shape);
  if (!shape.ok()) return shape.status();
  const auto kv_dtype = KvCacheDType(options.kv_cache_dtype);
  if (!kv_dtype.ok()) return kv_dtype.status();
  const LlamaConfig config = ConfigOf(*shape);
  std::unique_ptr<SyntheticModel> synthetic(new SyntheticModel);
  BackendOptions timed = options.backend;
  timed.cuda_time_steps = true;
  auto backend = CreateBackend(timed);
  if (!backend.ok()) return backend.status();
  synthetic->backend_ = *std::move(backend);
  if (!synthetic->backend_->Supports(options.head)) {
    return absl::InvalidArgumentError(
        absl::StrCat(synthetic->backend_->description(),
                     " does not compute an lm_head of int8"));
  }
  auto weights =
      RandomWeights(config, options.head, *synthetic->backend_).Make();
  if (!weights.ok()) return weights.status();
  auto model = LlamaModel::Create(config, *std::move(weights),
                                  {config.max_position_embeddings,
                                   options.max_tokens, options.max_logit_rows},
                                  *synthetic->backend_);
  if (!model.ok()) return model.status();
  synthetic->model_ = *std::move(model);
  const KvCacheShape cache_shape{config.num_layers, config.num_kv_heads,
                                 config.head_dim, *kv_dtype};
  auto available = synthetic->backend_->AvailableMemory();
  if (!available.ok()) return available.status();
  const auto fit =
      static_cast<int64_t>(*available) / cache_shape.bytes_per_block();
  auto cache = KvCache::Allocate(
      *synthetic->backend_, cache_shape,
      static_cast<int>(std::min<int64_t>(options.num_blocks, fit)));
  if (!cache.ok()) return cache.status();
  synthetic->kv_cache_ = std::make_unique<KvCache>(*std::move(cache));
  return synthetic;
}

absl::Status SyntheticModel::FillCache() {
  constexpr int64_t kRows = 2048;
  const LlamaConfig& config = model_->config();
  const AttentionShape shape{config.num_heads, config.num_kv_heads,
                             config.head_dim};
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> host(kRows * config.q_size());
  for (float& value : host) value = normal(random);
  const auto upload = [&](int64_t width) {
    return backend_->Upload({host.data(), DType::kF32, {kRows, width}});
  };
  auto q = upload(config.q_size());
  auto k = upload(config.kv_size());
  auto v = upload(config.kv_size());
  for (const auto* tensor : {&q, &k, &v}) {
    if (!tensor->ok()) return tensor->status();
  }
  // Not rotated: the angle of every position is zero.
  const std::vector<float> ones(config.head_dim / 2, 1.0f);
  const std::vector<float> zeros(config.head_dim / 2, 0.0f);
  const Shape angles{1, config.head_dim / 2};
  auto cos = backend_->Upload({ones.data(), DType::kF32, angles});
  auto sin = backend_->Upload({zeros.data(), DType::kF32, angles});
  if (!cos.ok() || !sin.ok()) return cos.ok() ? sin.status() : cos.status();

  const int64_t slots = int64_t{kv_cache_->num_blocks()} * kBlockSize;
  for (int64_t begin = 0; begin < slots; begin += kRows) {
    const int64_t count = std::min(kRows, slots - begin);
    const std::vector<TokenId> tokens(count, 0);
    const std::vector<int32_t> positions(count, 0);
    std::vector<int64_t> kv_slots;
    for (int64_t i = 0; i < count; ++i) kv_slots.push_back(begin + i);
    const BatchView batch{
        .tokens = tokens, .positions = positions, .kv_slots = kv_slots};
    backend_->BeginStep(batch);
    for (const KvLayer& layer : kv_cache_->layers()) {
      backend_->RopeAndWriteKv(
          shape, {cos->view(), sin->view()}, q->view().FirstRows(count),
          k->view().FirstRows(count), v->view().FirstRows(count), layer);
    }
    if (auto status = backend_->EndStep(); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace binarymos
