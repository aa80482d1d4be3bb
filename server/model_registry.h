// The models that this process serves, by name.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/api/sampling_params.h"
#include "engine/core/mutex.h"
#include "engine/engine.h"
#include "scheduler/serving_loop.h"

namespace binarymos {

// A model and the loop that runs it. Constant after construction; the loop's
// queue and status are thread-safe, as are the engine's constants.
class ServedModel {
 public:
  // The loop is not started yet.
  ServedModel(std::string name, std::unique_ptr<Engine> engine,
              const SchedulerOptions& options, QueueLimits limits);

  const std::string& name() const { return name_; }
  const Engine& engine() const { return *engine_; }
  const Tokenizer& tokenizer() const { return engine_->tokenizer(); }
  ServingLoop& loop() const { return *loop_; }
  const QueueLimits& limits() const { return limits_; }

  // Prompt + output of one request: max_model_len, or less where the cache
  // holds less.
  int max_positions() const { return max_positions_; }
  // A longer text has more tokens than that, whatever it says.
  size_t max_prompt_bytes() const { return max_prompt_bytes_; }

 private:
  const std::string name_;
  const QueueLimits limits_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<ServingLoop> loop_;  // ends before the engine
  int max_positions_ = 0;
  size_t max_prompt_bytes_ = 0;
};

// Thread-safe. Models are added and stay.
class ModelRegistry {
 public:
  // REQUIRES: no model of that name is here.
  ServedModel& Add(std::unique_ptr<ServedModel> model);

  // An empty name means the only model. UNAVAILABLE while there is none (the
  // server is loading), NOT_FOUND, or INVALID_ARGUMENT for an empty name where
  // there are several. The model lives as long as the registry.
  absl::StatusOr<ServedModel*> Find(const std::string& name) const;

  std::vector<ServedModel*> All() const;

 private:
  mutable Mutex mutex_;
  std::map<std::string, std::unique_ptr<ServedModel>> models_
      ABSL_GUARDED_BY(mutex_);
};

}  // namespace binarymos
