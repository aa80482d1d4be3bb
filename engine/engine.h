// A loaded model, ready to compute steps.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/api/model_runner.h"
#include "engine/api/types.h"
#include "engine/tokenizer.h"

namespace binarymos {

struct EngineOptions {
  std::string model_dir;
  // Compare every file with manifest.json first (engine/manifest.h).
  bool verify = false;
  // As in engine/backend/backend_factory.h.
  std::string device = "auto";
  int num_threads = 0;
  bool cpu_pin = false;
  std::string cpu_kernels = "auto";
  int activation_bits = 0;
  // "f16", or "int8": half the memory and time, not exact. Not on CUDA.
  std::string lm_head = "f16";
  double gpu_memory_utilization = 0.9;
  bool cuda_graphs = true;
  bool cuda_clusters = true;
  bool cuda_overlap = true;
  bool cuda_wgmma = false;
  bool cuda_sampling = true;  // on the device
  bool fast_linear = false;

  // Plan a step while the one before is computed: on, off, or auto: on CUDA
  // only. A CPU computes on a thread of its own then (engine/async_runner.h).
  std::string overlap = "auto";

  int max_num_seqs = 64;  // sequences that run at the same time, 1 to 1024
  int max_model_len = 0;  // 0: the model's max_position_embeddings
  int max_num_batched_tokens = 0;  // 0: CUDA 2,048; CPU measured at load so
                                   // that a step stays under 500 ms
  int64_t kv_cache_memory = 0;     // bytes; 0: the smaller of 4 GiB and half of
                                   // what is left (CPU), or all that
                                   // gpu_memory_utilization leaves (CUDA)
  // "f16"; "fp8_e4m3": half the memory, rounded (engine/core/float8.h); "f32":
  // for comparisons with the reference.
  std::string kv_cache_dtype = "f16";
  int gate_sample_interval = 64;  // steps between StepStats::mean_gate; 0: off
};

// Facts about the loaded model. Constant after loading.
struct ModelInfo {
  std::string architecture;  // "llama"
  std::string quant_method;  // "binarymos", "float16"
  std::string device;        // Backend::description()
  std::string device_note;   // Backend::note()
  int num_experts = 0;       // 0 for float16
  int vocab_size = 0;
  int hidden_size = 0;
  int intermediate_size = 0;
  int num_layers = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int max_position_embeddings = 0;
  int64_t num_parameters = 0;
  int64_t weight_bytes = 0;    // held by the backend
  double bits_per_weight = 0;  // of the linear layers in the blocks
  std::string kv_cache_dtype;  // EngineOptions'
  int64_t kv_bytes_per_token = 0;
};

// Owns backend, weights, KV memory and runner. Load on any thread; afterwards
// the runner is confined to the serving-loop thread, and tokenizer(), info()
// and cache_config() are constant and thread-safe.
class Engine {
 public:
  // Loads and warms up. INVALID_ARGUMENT or NOT_FOUND for a model directory or
  // option that is not right (the message names file, tensor and what was
  // expected), DATA_LOSS for a file that is not as the manifest says,
  // RESOURCE_EXHAUSTED with the arithmetic if memory is short, UNAVAILABLE for
  // a device that is not there.
  static absl::StatusOr<std::unique_ptr<Engine>> Load(
      const EngineOptions& options);

  virtual ~Engine() = default;

  virtual ModelRunner& runner() = 0;
  virtual const CacheConfig& cache_config() const = 0;
  virtual const ModelInfo& info() const = 0;
  virtual const Tokenizer& tokenizer() const = 0;
  // Tokens that end a sequence by default (config.json,
  // generation_config.json).
  virtual const std::vector<TokenId>& eos_tokens() const = 0;
};

}  // namespace binarymos
