// How well a model predicts a text.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/api/types.h"
#include "engine/engine.h"

namespace binarymos {

struct PerplexityProgress {
  int64_t tokens_done = 0;
  int64_t total_tokens = 0;  // of all full windows
  double perplexity = 0;     // of the full windows so far; 0 before the first
};

struct PerplexityOptions {
  int window = 0;  // tokens; 0: min(2048, the model's max_position_embeddings)
  // Called after every step. May be empty.
  std::function<void(const PerplexityProgress&)> on_progress;
};

struct PerplexityResult {
  double perplexity = 0;
  int window = 0;
  int64_t num_windows = 0;
  int64_t num_tokens = 0;   // of the text, BOS included
  int64_t tokens_used = 0;  // of the full windows
  double seconds = 0;       // of computing
  double tokens_per_second() const {
    return seconds > 0 ? static_cast<double>(tokens_used) / seconds : 0;
  }
};

// The protocol of the BinaryMoS authors: exp of the mean, over the full
// non-overlapping windows of `tokens`, of each window's mean negative
// log-likelihood. A window sees nothing of the one before, so its first token
// is not predicted; the tokens after the last full window do not count.
//
// Uses the engine's runner, all of whose slots must be free. INVALID_ARGUMENT
// if the window is out of range or the tokens do not fill one, or one is not in
// the vocabulary; DATA_LOSS if the model gives logits that are not finite; the
// runner's errors.
absl::StatusOr<PerplexityResult> MeasurePerplexity(
    Engine& engine, const std::vector<TokenId>& tokens,
    const PerplexityOptions& options);

// The same of a text, with one BOS at its start if the tokenizer has one.
// INVALID_ARGUMENT also if it is not UTF-8.
absl::StatusOr<PerplexityResult> MeasurePerplexity(
    Engine& engine, std::string_view text, const PerplexityOptions& options);

}  // namespace binarymos
