// What the sampling kernels read and write: plain values, laid out once for
// host and device.
#pragma once

#include <cstdint>

namespace binarymos::cuda {

// Of the sequence in a slot: SamplingParams, and how far it is.
struct SampleSlot {
  float temperature = 1.0f;
  int32_t top_k = 0;
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  int32_t min_tokens = 0;
  uint64_t seed = 0;
  uint32_t sample_index = 0;
  int32_t num_generated = 0;
  int32_t keeps_history = 0;  // a penalty is on
  int32_t suppresses = 0;     // there are tokens that wait for min_tokens
};

// A row of logits to choose a token from.
struct SampleRow {
  int32_t slot = 0;
  int32_t position = 0;   // where the token will stand
  int32_t logit_row = 0;  // of all logits of the step
  int32_t mask = -1;      // index of its allowed tokens; -1: all
  int32_t num_top = -1;   // as BatchRow::num_logprobs
};

struct SampleResult {
  int32_t token = -1;  // -1: not finite, or no token was left
  // If num_top >= 0, of the logits as they came: that of the token, the
  // largest, and the sum of exp(logit - largest) in units of 2^-43.
  float logit = 0.0f;
  float largest = 0.0f;
  int32_t unused = 0;
  uint64_t total_units = 0;
};

struct TopLogit {
  int32_t token = -1;
  float logit = 0.0f;
};
inline constexpr int kMaxTopLogits = 20;

// Puts a sequence into a slot. Tokens are in lists that all changes share.
struct SlotChange {
  SampleSlot state;
  int32_t slot = 0;
  int32_t suppressed_begin = 0;  // of [suppressed_begin, suppressed_end)
  int32_t suppressed_end = 0;
  int32_t seen_begin = 0;
  int32_t seen_end = 0;
  int32_t unused = 0;
};

// A token that prompt or output hold, and 1 + how often the output does.
struct SeenToken {
  int32_t token = 0;
  int32_t count = 0;
};

}  // namespace binarymos::cuda
