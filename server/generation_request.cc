#include "server/generation_request.h"

#include <cstddef>

#include "absl/strings/str_cat.h"

namespace binarymos {
namespace {

constexpr int kMaxSamples = 16;
constexpr int kMaxLogprobs = 20;
constexpr size_t kMaxStopStrings = 16;
constexpr size_t kMaxStopStringBytes = 256;
constexpr size_t kMaxStopTokens = 64;

template <typename T>
absl::Status Wrong(const std::string& field, const T& value,
                   const std::string& allowed) {
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", value, "; it must be ", allowed));
}

// NaN fails every comparison, so the conditions say what is right.
absl::Status CheckIn(const std::string& field, std::optional<float> value,
                     float low, float high) {
  if (!value || (*value >= low && *value <= high)) return absl::OkStatus();
  return Wrong(field, *value, absl::StrCat("in [", low, ", ", high, "]"));
}

absl::Status CheckAbove(const std::string& field, std::optional<float> value,
                        float low, float high) {
  if (!value || (*value > low && *value <= high)) return absl::OkStatus();
  return Wrong(field, *value, absl::StrCat("in (", low, ", ", high, "]"));
}

absl::Status CheckIn(const std::string& field, std::optional<int32_t> value,
                     int low, int high) {
  if (!value || (*value >= low && *value <= high)) return absl::OkStatus();
  return Wrong(field, *value, absl::StrCat("in [", low, ", ", high, "]"));
}

template <typename T>
absl::Status CheckAtLeast(const std::string& field, std::optional<T> value,
                          T low) {
  if (!value || *value >= low) return absl::OkStatus();
  return Wrong(field, *value, absl::StrCat("at least ", low));
}

absl::Status FirstError(std::initializer_list<absl::Status> statuses) {
  for (const absl::Status& status : statuses) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CheckSampling(const GenerationRequest::Sampling& s) {
  return FirstError({
      CheckIn("sampling.temperature", s.temperature, 0.0f, 100.0f),
      CheckAtLeast<int32_t>("sampling.top_k", s.top_k, 0),
      CheckAbove("sampling.top_p", s.top_p, 0.0f, 1.0f),
      CheckIn("sampling.min_p", s.min_p, 0.0f, 1.0f),
      CheckAbove("sampling.repetition_penalty", s.repetition_penalty, 0.0f,
                 100.0f),
      CheckIn("sampling.presence_penalty", s.presence_penalty, -2.0f, 2.0f),
      CheckIn("sampling.frequency_penalty", s.frequency_penalty, -2.0f, 2.0f),
  });
}

absl::Status CheckStop(const GenerationRequest::Stop& stop) {
  if (stop.stop_strings.size() > kMaxStopStrings) {
    return absl::InvalidArgumentError(
        absl::StrCat("stop.stop_strings has ", stop.stop_strings.size(),
                     " entries; at most ", kMaxStopStrings, " are allowed"));
  }
  for (size_t i = 0; i < stop.stop_strings.size(); ++i) {
    const size_t size = stop.stop_strings[i].size();
    if (size >= 1 && size <= kMaxStopStringBytes) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("stop.stop_strings[", i, "] has ", size,
                     " bytes; it must have 1 to ", kMaxStopStringBytes));
  }
  if (stop.stop_token_ids.size() > kMaxStopTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("stop.stop_token_ids has ", stop.stop_token_ids.size(),
                     " entries; at most ", kMaxStopTokens, " are allowed"));
  }
  return FirstError({
      CheckAtLeast<int32_t>("stop.max_tokens", stop.max_tokens, 1),
      CheckAtLeast<int32_t>("stop.min_tokens", stop.min_tokens, 0),
  });
}

absl::Status CheckPrompt(const GenerationRequest& request) {
  if (std::holds_alternative<std::monostate>(request.prompt)) {
    return absl::InvalidArgumentError(
        "prompt is not set; give `text` or `tokens`");
  }
  const auto* tokens = std::get_if<std::vector<TokenId>>(&request.prompt);
  if (tokens != nullptr && tokens->empty()) {
    return absl::InvalidArgumentError(
        "tokens.ids is empty; a prompt has at least one token");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Validate(const GenerationRequest& request) {
  return FirstError({
      CheckPrompt(request),
      CheckSampling(request.sampling),
      CheckStop(request.stop),
      CheckIn("n", request.n, 1, kMaxSamples),
      CheckIn("logprobs", request.logprobs, 0, kMaxLogprobs),
      CheckIn("prompt_logprobs", request.prompt_logprobs, 0, kMaxLogprobs),
      CheckAtLeast<int64_t>("time_limit_ms", request.time_limit_ms, 1),
      CheckAtLeast<int64_t>("queue_time_limit_ms", request.queue_time_limit_ms,
                            1),
      CheckAtLeast<int64_t>("first_token_time_limit_ms",
                            request.first_token_time_limit_ms, 1),
  });
}

absl::Status ValidateTokenIds(const std::vector<TokenId>& ids, int vocab_size,
                              const std::string& field) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < vocab_size) continue;
    return Wrong(absl::StrCat(field, "[", i, "]"), ids[i],
                 absl::StrCat("in [0, ", vocab_size, ")"));
  }
  return absl::OkStatus();
}

}  // namespace binarymos
