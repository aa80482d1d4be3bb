#include "server/model_registry.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/core/check.h"

namespace binarymos {
namespace {

int MaxPositions(const CacheConfig& config) {
  const int64_t cached =
      static_cast<int64_t>(config.num_blocks) * config.block_size;
  return static_cast<int>(std::min<int64_t>(config.max_model_len, cached));
}

// Of text, which one token can stand for.
size_t LongestPiece(const Tokenizer& tokenizer) {
  size_t longest = 1;
  for (TokenId token = 0; token < tokenizer.vocab_size(); ++token) {
    longest =
        std::max(longest, tokenizer.Piece(token, /*keep_special=*/true).size());
  }
  return longest;
}

}  // namespace

ServedModel::ServedModel(std::string name, std::unique_ptr<Engine> engine,
                         const SchedulerOptions& options, QueueLimits limits)
    : name_(std::move(name)),
      limits_(limits),
      engine_(std::move(engine)),
      loop_(std::make_unique<ServingLoop>(engine_->runner(), options, limits)),
      max_positions_(MaxPositions(engine_->cache_config())),
      max_prompt_bytes_(max_positions_ * LongestPiece(engine_->tokenizer())) {}

ServedModel& ModelRegistry::Add(std::unique_ptr<ServedModel> model) {
  MutexLock lock(mutex_);
  auto [it, inserted] = models_.try_emplace(model->name(), std::move(model));
  BINARYMOS_CHECK(inserted) << it->first;
  return *it->second;
}

absl::StatusOr<ServedModel*> ModelRegistry::Find(
    const std::string& name) const {
  MutexLock lock(mutex_);
  if (models_.empty()) {
    return absl::UnavailableError("the server is loading its model; try again");
  }
  if (name.empty() && models_.size() == 1) return models_.begin()->second.get();
  const auto it = models_.find(name);
  if (it != models_.end()) return it->second.get();
  const std::string known =
      absl::StrJoin(models_, ", ", [](std::string* out, const auto& entry) {
        absl::StrAppend(out, "\"", entry.first, "\"");
      });
  if (name.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("model is empty, and there are several: ", known));
  }
  return absl::NotFoundError(absl::StrCat(
      "model \"", name, "\" is not served here; there is ", known));
}

std::vector<ServedModel*> ModelRegistry::All() const {
  MutexLock lock(mutex_);
  std::vector<ServedModel*> models;
  for (const auto& [name, model] : models_) models.push_back(model.get());
  return models;
}

}  // namespace binarymos
