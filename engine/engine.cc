#include "engine/engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/async_runner.h"
#include "engine/backend/backend_factory.h"
#include "engine/kv_cache.h"
#include "engine/llama_runner.h"
#include "engine/manifest.h"
#include "engine/model/checkpoint.h"
#include "engine/model/llama.h"
#include "engine/model/llama_config.h"
#include "engine/model/weights.h"

namespace binarymos {
namespace {

constexpr int kMaxNumSeqs = 1024;
constexpr int kMaxThreads = 1024;
constexpr int kMaxBatchedTokens = 65536;
constexpr int64_t kDefaultKvCacheMemory = int64_t{4} << 30;
// Of one chunk of logits, on the device and on the host.
constexpr int64_t kLogitsMemory = int64_t{16} << 20;
// Sampling is a small part of a step; more threads only wake up for nothing.
constexpr int kMaxSamplerThreads = 4;

constexpr int kMinTunedTokens = 64;
constexpr int kMaxTunedTokens = 2048;
constexpr auto kLongestStep = std::chrono::milliseconds(500);
constexpr int kWarmUpTokens = 8;

template <typename T>
absl::Status CheckRange(const char* option, T value, T low, T high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      option, " is ", value, "; it must be from ", low, " to ", high));
}

absl::Status ValidateOptions(const EngineOptions& options) {
  if (options.model_dir.empty()) {
    return absl::InvalidArgumentError(
        "--model is empty; name a model directory");
  }
  if (options.lm_head != "f16" && options.lm_head != "int8") {
    return absl::InvalidArgumentError(absl::StrCat(
        "--lm-head is \"", options.lm_head, "\"; it must be f16 or int8"));
  }
  if (options.overlap != "auto" && options.overlap != "on" &&
      options.overlap != "off") {
    return absl::InvalidArgumentError(
        absl::StrCat("--overlap is '", options.overlap,
                     "'; it must be 'auto', 'on' or 'off'"));
  }
  const absl::Status checks[] = {
      KvCacheDType(options.kv_cache_dtype).status(),
      CheckRange("--threads", options.num_threads, 0, kMaxThreads),
      CheckRange("--max-num-seqs", options.max_num_seqs, 1, kMaxNumSeqs),
      CheckRange("--max-model-len", options.max_model_len, 0, 1 << 24),
      CheckRange("--max-num-batched-tokens", options.max_num_batched_tokens, 0,
                 kMaxBatchedTokens),
      CheckRange("--kv-cache-memory", options.kv_cache_memory, int64_t{0},
                 int64_t{1} << 46),
      CheckRange("--gate-sample-interval", options.gate_sample_interval, 0,
                 1 << 30),
  };
  for (const absl::Status& check : checks) {
    if (!check.ok()) return check;
  }
  return absl::OkStatus();
}

// Positions that the model can tell apart with its rotation scaling. Dynamic
// NTK stretches to whatever is asked for.
int64_t LongestModelLen(const LlamaConfig& config) {
  switch (config.rope_scaling.kind) {
    case RopeScaling::Kind::kNone:
      return config.max_position_embeddings;
    case RopeScaling::Kind::kLinear:
      return std::llround(config.max_position_embeddings *
                          config.rope_scaling.factor);
    case RopeScaling::Kind::kDynamic:
      return int64_t{1} << 24;
  }
  return config.max_position_embeddings;
}

absl::StatusOr<int> MaxModelLen(const EngineOptions& options,
                                const LlamaConfig& config) {
  if (options.max_model_len == 0) return config.max_position_embeddings;
  const int64_t longest = LongestModelLen(config);
  if (options.max_model_len > longest) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--max-model-len is ", options.max_model_len,
        "; this model has positions up to ", longest,
        " (max_position_embeddings ", config.max_position_embeddings,
        ", rope_scaling ", Name(config.rope_scaling.kind), ")"));
  }
  return options.max_model_len;
}

absl::Status CheckVocabulary(const Tokenizer& tokenizer,
                             const LlamaConfig& config,
                             const std::string& model_dir) {
  if (tokenizer.vocab_size() <= config.vocab_size) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(model_dir, "/tokenizer.model has ", tokenizer.vocab_size(),
                   " tokens, but vocab_size in config.json is ",
                   config.vocab_size, "; they do not belong together"));
}

// Bytes for the KV cache, once weights and workspaces are resident.
absl::StatusOr<int64_t> KvCacheMemory(const EngineOptions& options,
                                      Backend& backend, bool on_host) {
  const absl::StatusOr<size_t> available = backend.AvailableMemory();
  if (!available.ok()) return available.status();
  const auto left = static_cast<int64_t>(*available);
  if (options.kv_cache_memory == 0) {
    return on_host ? std::min(kDefaultKvCacheMemory, left / 2) : left;
  }
  if (options.kv_cache_memory > left) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "--kv-cache-memory is ", options.kv_cache_memory, " bytes, but only ",
        left, " bytes are left after weights and workspaces; lower it",
        on_host ? "" : " or raise --gpu-memory-utilization"));
  }
  return options.kv_cache_memory;
}

int NumSamplerThreads(const EngineOptions& options) {
  const int threads =
      options.num_threads != 0
          ? options.num_threads
          : static_cast<int>(std::thread::hardware_concurrency());
  return std::clamp(threads, 1, kMaxSamplerThreads);
}

// Computes steps of sequences that nobody asked for, to touch memory and to
// see how long a step takes. Uses slots and blocks from 0 on and leaves both
// free; what it leaves in the cache is overwritten before it is read.
class Probe {
 public:
  Probe(ModelRunner& runner, const CacheConfig& cache, int vocab_size)
      : runner_(runner), cache_(cache), vocab_size_(vocab_size) {}

  // Runs a step of about `num_tokens` tokens and returns what one of that many
  // would take.
  absl::StatusOr<Duration> Step(int num_tokens) {
    const BatchPlan& plan = Plan(num_tokens);
    SamplingParams greedy;
    greedy.temperature = 0.0f;
    for (const BatchRow& row : plan.rows) {
      runner_.AddSequence(row.slot, {&greedy, 0, row.tokens});
    }
    absl::Status status = runner_.Submit(plan);
    if (status.ok()) status = runner_.Wait(result_);
    for (const BatchRow& row : plan.rows) runner_.RemoveSequence(row.slot);
    if (!status.ok()) return status;
    return result_.stats.compute_time * num_tokens / plan.num_tokens;
  }

 private:
  // As many rows of up to max_model_len tokens as slots and blocks allow.
  const BatchPlan& Plan(int num_tokens) {
    tokens_.resize(num_tokens);
    for (int i = 0; i < num_tokens; ++i) {
      tokens_[i] = static_cast<TokenId>(int64_t{i} * 7919 % vocab_size_);
    }
    blocks_.resize(cache_.num_blocks);
    for (int i = 0; i < cache_.num_blocks; ++i) blocks_[i] = i;

    plan_.step = 0;
    plan_.rows.clear();
    plan_.num_tokens = 0;
    size_t next_block = 0;
    while (plan_.num_tokens < num_tokens &&
           static_cast<int>(plan_.rows.size()) < cache_.max_num_seqs) {
      const int length =
          std::min(num_tokens - plan_.num_tokens, cache_.max_model_len);
      const size_t num_blocks = (length + kBlockSize - 1) / kBlockSize;
      if (next_block + num_blocks > blocks_.size()) break;
      BatchRow row;
      row.slot = static_cast<SlotId>(plan_.rows.size());
      row.tokens = std::span(tokens_).subspan(plan_.num_tokens, length);
      row.block_table = std::span(blocks_).subspan(next_block, num_blocks);
      row.sample = true;
      plan_.rows.push_back(row);
      plan_.num_tokens += length;
      next_block += num_blocks;
    }
    return plan_;
  }

  ModelRunner& runner_;
  const CacheConfig& cache_;
  const int vocab_size_;
  std::vector<TokenId> tokens_;
  std::vector<BlockId> blocks_;
  BatchPlan plan_;
  StepResult result_;
};

// The largest power of two whose step, measured or foreseen, stays under
// kLongestStep.
absl::StatusOr<int> TuneBudget(Probe& probe) {
  int budget = kMinTunedTokens;
  for (;;) {
    const absl::StatusOr<Duration> time = probe.Step(budget);
    if (!time.ok()) return time.status();
    if (*time > kLongestStep) return std::max(kMinTunedTokens, budget / 2);
    // A fifth is left for attention to longer contexts than the probe's.
    if (budget == kMaxTunedTokens || *time * 2 > kLongestStep * 4 / 5) {
      return budget;
    }
    budget *= 2;
  }
}

class LlamaEngine : public Engine {
 public:
  // As Engine::Load, which it is the body of.
  absl::Status Load(const EngineOptions& options);

  ModelRunner& runner() override { return *runner_; }
  const CacheConfig& cache_config() const override { return cache_config_; }
  const ModelInfo& info() const override { return info_; }
  const Tokenizer& tokenizer() const override { return *tokenizer_; }
  const std::vector<TokenId>& eos_tokens() const override {
    return eos_tokens_;
  }

 private:
  absl::StatusOr<LlamaWeights> LoadWeights(const EngineOptions& options);
  absl::Status Allocate(const EngineOptions& options, LlamaWeights weights);
  absl::Status WarmUp(const EngineOptions& options);
  void DescribeModel(const EngineOptions& options);
  // REQUIRES: model_.
  bool on_host() const {
    return model_->weights().final_norm.view().device == Device::kHost;
  }

  // Constant after Load. Destroyed from the last to the first.
  LlamaConfig config_;
  ModelInfo info_;
  CacheConfig cache_config_;
  std::vector<TokenId> eos_tokens_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<LlamaModel> model_;
  std::unique_ptr<KvCache> kv_cache_;
  std::unique_ptr<ModelRunner> runner_;
};

absl::Status LlamaEngine::Load(const EngineOptions& options) {
  if (absl::Status status = ValidateOptions(options); !status.ok()) {
    return status;
  }
  if (options.verify) {
    const absl::Status status = VerifyManifest(options.model_dir);
    if (!status.ok()) return status;
  }
  absl::StatusOr<LlamaWeights> weights = LoadWeights(options);
  if (!weights.ok()) return weights.status();
  if (absl::Status status = Allocate(options, *std::move(weights));
      !status.ok()) {
    return status;
  }
  DescribeModel(options);
  if (absl::Status status = WarmUp(options); !status.ok()) return status;
  // A CPU that schedules does not compute meanwhile; a GPU does, and has two
  // steps in flight by itself where it chooses the tokens.
  const bool overlap =
      options.overlap == "on" || (options.overlap == "auto" && !on_host());
  if (overlap && runner_->max_steps_in_flight() == 1) {
    runner_ = std::make_unique<AsyncRunner>(std::move(runner_));
  }
  return absl::OkStatus();
}

absl::StatusOr<LlamaWeights> LlamaEngine::LoadWeights(
    const EngineOptions& options) {
  absl::StatusOr<LlamaConfig> config = LlamaConfig::Load(options.model_dir);
  if (!config.ok()) return config.status();
  config_ = *std::move(config);

  const absl::StatusOr<int> max_model_len = MaxModelLen(options, config_);
  if (!max_model_len.ok()) return max_model_len.status();
  cache_config_.max_model_len = *max_model_len;
  cache_config_.max_num_seqs = options.max_num_seqs;

  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer =
      Tokenizer::Load(options.model_dir);
  if (!tokenizer.ok()) return tokenizer.status();
  tokenizer_ = *std::move(tokenizer);
  if (absl::Status status =
          CheckVocabulary(*tokenizer_, config_, options.model_dir);
      !status.ok()) {
    return status;
  }
  eos_tokens_ = config_.eos_tokens;
  if (eos_tokens_.empty() && tokenizer_->eos() != kNoToken) {
    eos_tokens_.push_back(tokenizer_->eos());
  }

  absl::StatusOr<std::unique_ptr<Backend>> backend =
      CreateBackend({.device = options.device,
                     .num_threads = options.num_threads,
                     .cpu_pin = options.cpu_pin,
                     .cpu_kernels = options.cpu_kernels,
                     .activation_bits = options.activation_bits,
                     .gpu_memory_utilization = options.gpu_memory_utilization,
                     .cuda_graphs = options.cuda_graphs,
                     .cuda_clusters = options.cuda_clusters,
                     .cuda_overlap = options.cuda_overlap,
                     .cuda_wgmma = options.cuda_wgmma,
                     .fast_linear = options.fast_linear});
  if (!backend.ok()) return backend.status();
  backend_ = *std::move(backend);

  const LinearKind head =
      options.lm_head == "int8" ? LinearKind::kInt8 : LinearKind::kFloat16;
  if (!backend_->Supports(head)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--lm-head is int8, which ", backend_->description(),
                     " does not compute; use f16"));
  }
  const absl::StatusOr<Checkpoint> checkpoint =
      Checkpoint::Open(options.model_dir);
  if (!checkpoint.ok()) return checkpoint.status();
  return LlamaWeights::Load(*checkpoint, config_, *backend_, head);
}

absl::Status LlamaEngine::Allocate(const EngineOptions& options,
                                   LlamaWeights weights) {
  LlamaLimits limits;
  limits.max_model_len = cache_config_.max_model_len;
  limits.max_tokens = options.max_num_batched_tokens != 0
                          ? options.max_num_batched_tokens
                          : kMaxTunedTokens;
  limits.max_logit_rows = static_cast<int>(std::clamp<int64_t>(
      kLogitsMemory / (int64_t{4} * config_.vocab_size), 1, limits.max_tokens));
  absl::StatusOr<std::unique_ptr<LlamaModel>> model =
      LlamaModel::Create(config_, std::move(weights), limits, *backend_);
  if (!model.ok()) return model.status();
  model_ = *std::move(model);

  DeviceSampler* const sampler =
      options.cuda_sampling ? backend_->sampler() : nullptr;
  if (sampler != nullptr) {
    const absl::Status status = sampler->Reserve(
        options.max_num_seqs, limits.max_logit_rows, config_.vocab_size);
    if (!status.ok()) return status;
  }

  const absl::StatusOr<int64_t> memory =
      KvCacheMemory(options, *backend_, on_host());
  if (!memory.ok()) return memory.status();
  const KvCacheShape shape{config_.num_layers, config_.num_kv_heads,
                           config_.head_dim,
                           *KvCacheDType(options.kv_cache_dtype)};
  const absl::StatusOr<int> num_blocks = NumKvCacheBlocks(
      shape, {.pool_bytes = *memory,
              .max_num_seqs = options.max_num_seqs,
              .max_model_len = cache_config_.max_model_len,
              .cap_at_working_set = options.kv_cache_memory == 0});
  if (!num_blocks.ok()) return num_blocks.status();

  absl::StatusOr<KvCache> cache =
      KvCache::Allocate(*backend_, shape, *num_blocks);
  if (!cache.ok()) return cache.status();
  kv_cache_ = std::make_unique<KvCache>(*std::move(cache));
  cache_config_.num_blocks = kv_cache_->num_blocks();
  cache_config_.bytes = kv_cache_->bytes();

  runner_ = std::make_unique<LlamaRunner>(
      *backend_, *model_, *kv_cache_,
      LlamaRunnerOptions{
          .max_num_seqs = options.max_num_seqs,
          .gate_sample_interval = options.gate_sample_interval,
          .num_sampler_threads = NumSamplerThreads(options),
          .sampler = sampler,
          .max_steps_in_flight = sampler != nullptr && options.overlap != "off"
                                     ? backend_->max_steps_in_flight()
                                     : 1});
  return absl::OkStatus();
}

absl::Status LlamaEngine::WarmUp(const EngineOptions& options) {
  Probe probe(*runner_, cache_config_, config_.vocab_size);
  const int max_tokens = model_->limits().max_tokens;
  const absl::StatusOr<Duration> first =
      probe.Step(std::min(kWarmUpTokens, max_tokens));
  if (!first.ok()) return first.status();

  if (options.max_num_batched_tokens != 0 || !on_host()) {
    cache_config_.max_num_batched_tokens = max_tokens;
    return absl::OkStatus();
  }
  const absl::StatusOr<int> budget = TuneBudget(probe);
  if (!budget.ok()) return budget.status();
  cache_config_.max_num_batched_tokens = *budget;
  return absl::OkStatus();
}

void LlamaEngine::DescribeModel(const EngineOptions& options) {
  const LlamaWeights& weights = model_->weights();
  info_.architecture = "llama";
  info_.quant_method = Name(config_.quant_method);
  info_.device = backend_->description();
  info_.device_note = backend_->note();
  info_.num_experts = config_.num_experts;
  info_.vocab_size = config_.vocab_size;
  info_.hidden_size = config_.hidden_size;
  info_.intermediate_size = config_.intermediate_size;
  info_.num_layers = config_.num_layers;
  info_.num_heads = config_.num_heads;
  info_.num_kv_heads = config_.num_kv_heads;
  info_.head_dim = config_.head_dim;
  info_.max_position_embeddings = config_.max_position_embeddings;
  info_.num_parameters = weights.num_parameters;
  info_.weight_bytes = weights.bytes;
  info_.bits_per_weight = weights.bits_per_weight;
  info_.kv_cache_dtype = options.kv_cache_dtype;
  info_.kv_bytes_per_token = kv_cache_->shape().bytes_per_token();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Load(
    const EngineOptions& options) {
  auto engine = std::make_unique<LlamaEngine>();
  if (absl::Status status = engine->Load(options); !status.ok()) return status;
  return engine;
}

}  // namespace binarymos
