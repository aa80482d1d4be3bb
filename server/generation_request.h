// What a client asks for, before the model is known: plain values that every
// face fills in.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "engine/api/types.h"

namespace binarymos {

// Field names, meanings and limits are those of GenerateRequest in
// proto/binarymos/v1/inference.proto. Absent means the server's default.
struct GenerationRequest {
  struct Sampling {
    std::optional<float> temperature;
    std::optional<int32_t> top_k;
    std::optional<float> top_p;
    std::optional<float> min_p;
    std::optional<float> repetition_penalty;
    std::optional<float> presence_penalty;
    std::optional<float> frequency_penalty;
    std::optional<uint64_t> seed;
  };
  struct Stop {
    std::optional<int32_t> max_tokens;
    std::optional<int32_t> min_tokens;
    std::vector<std::string> stop_strings;
    std::vector<TokenId> stop_token_ids;
    bool include_stop_string = false;
    bool ignore_eos = false;
  };

  std::string model;
  // Nothing, text, or token ids.
  std::variant<std::monostate, std::string, std::vector<TokenId>> prompt;
  Sampling sampling;
  Stop stop;
  std::optional<int32_t> n;
  std::optional<int32_t> logprobs;
  std::optional<int32_t> prompt_logprobs;
  bool echo = false;
  std::optional<int32_t> priority;
  std::optional<int64_t> time_limit_ms;
  std::optional<int64_t> queue_time_limit_ms;
  std::optional<int64_t> first_token_time_limit_ms;
};

// Checks everything that can be checked without the model. INVALID_ARGUMENT
// with a message that begins with the field's name.
absl::Status Validate(const GenerationRequest& request);

// Checks that each id is a token of the model. INVALID_ARGUMENT as above;
// `field` is the name of the list.
absl::Status ValidateTokenIds(const std::vector<TokenId>& ids, int vocab_size,
                              const std::string& field);

}  // namespace binarymos
