// How the next token of a sequence is chosen.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/api/types.h"

namespace binarymos {

// A value type; the runner copies it when a sequence is added. The defaults
// sample from the model's own distribution.
//
// Order of application, on f32 logits: logits of stop tokens are removed while
// fewer than `min_tokens` were generated; repetition, frequency and presence
// penalties; temperature; top_k; top_p; min_p.
struct SamplingParams {
  float temperature = 1.0f;  // 0 means greedy: the smallest id of the largest
  int32_t top_k = 0;         // 0 means all
  float top_p = 1.0f;        // in (0, 1]
  float min_p = 0.0f;        // relative to the most likely token, in [0, 1]
  // Logits of tokens seen in prompt or output are divided (if positive) or
  // multiplied (if negative) by it. 1 means off.
  float repetition_penalty = 1.0f;
  // Subtracted for tokens seen in the output, once / per occurrence.
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  // Key of the counter-based generator, together with the sample index and the
  // position, so a token does not depend on its neighbours or on preemption.
  uint64_t seed = 0;
  // While fewer tokens were generated, `suppressed_tokens` are not sampled.
  int32_t min_tokens = 0;
  std::vector<TokenId> suppressed_tokens;  // EOS (unless ignored), stop ids

  // Whether it matters which tokens were seen.
  bool has_penalties() const {
    return repetition_penalty != 1.0f || presence_penalty != 0.0f ||
           frequency_penalty != 0.0f;
  }
};

}  // namespace binarymos
