// A model of random weights in a backend's memory, made without files.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/backend/backend.h"
#include "engine/backend/backend_factory.h"
#include "engine/kv_cache.h"
#include "engine/model/llama.h"

namespace binarymos {

struct SyntheticModelOptions {
  std::string shape = "7b";  // as of SyntheticShapeByName
  BackendOptions backend;    // steps are timed in any case
  LinearKind head = LinearKind::kFloat16;
  int max_tokens = 1;  // of a step
  int max_logit_rows = 1;
  int num_blocks = 1;  // of the KV cache; fewer if they do not fit
  std::string kv_cache_dtype = "f16";  // as of KvCacheDType
};

// Model and cache without a scheduler. Layers have the same random weights,
// each a copy of its own.
class SyntheticModel {
 public:
  // NOT_FOUND for an unknown shape; errors of KvCacheDType, of CreateBackend
  // and of loading.
  static absl::StatusOr<std::unique_ptr<SyntheticModel>> Create(
      const SyntheticModelOptions& options);

  Backend& backend() { return *backend_; }
  LlamaModel& model() { return *model_; }
  KvCache& kv_cache() { return *kv_cache_; }

  // Writes random keys and values to all of the cache.
  absl::Status FillCache();

 private:
  SyntheticModel() = default;

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<LlamaModel> model_;
  std::unique_ptr<KvCache> kv_cache_;
};

}  // namespace binarymos
