// Tokens of one request on their way from the loop to its reader.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/api/batch_plan.h"
#include "engine/api/types.h"
#include "engine/core/mutex.h"

namespace binarymos {

enum class FinishReason {
  kEos,
  kStopToken,
  kStopString,  // decided by the reader, through RequestQueue::StopAt
  kLength,
  kCancelled,
  kDeadline,
  kError,
};

// Moments of one sample, monotonic. Unset: it never got that far.
struct RequestTimes {
  MonotonicTime arrival{};
  std::optional<MonotonicTime> first_scheduled;
  std::optional<MonotonicTime> first_token;
  std::optional<MonotonicTime> last_token;
  MonotonicTime finished{};
};

// The end of one (request, sample). Exactly one is published for each.
struct Finish {
  FinishReason reason = FinishReason::kError;
  absl::Status status;  // of kCancelled, kDeadline and kError; else OK
  TokenId matched_token = kNoToken;  // of kEos and kStopToken
  int num_prompt_tokens = 0;
  int num_cached_tokens = 0;
  int num_output_tokens = 0;
  int num_preemptions = 0;
  RequestTimes times;
};

// A token, or an end, or both (the last token and its end travel together).
struct TokenEvent {
  int sample = 0;
  TokenId token = kNoToken;
  PositionLogprobs logprobs;  // if asked for
  // Of this sample's prompt, once, before or with its first token.
  std::vector<PositionLogprobs> prompt_logprobs;
  std::optional<Finish> finish;
};

// Thread-safe, unbounded by itself: a request's max_tokens bounds it. The loop
// pushes, one reader drains. Shared by both.
class TokenStream {
 public:
  // `on_ready` is called by the pushing thread, without a lock held, when the
  // stream turns from empty to not empty. It must be quick: it runs in the
  // serving loop. May be empty.
  explicit TokenStream(std::function<void()> on_ready);

  void Push(TokenEvent event);

  // Moves everything pushed so far to the end of `events`, oldest first.
  void Drain(std::vector<TokenEvent>& events);

 private:
  const std::function<void()> on_ready_;

  Mutex mutex_;
  std::vector<TokenEvent> events_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace binarymos
