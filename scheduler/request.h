// What a client asked for, as the scheduler sees it.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/api/sampling_params.h"
#include "engine/api/types.h"
#include "scheduler/token_stream.h"

namespace binarymos {

// Immutable once submitted. Validated and tokenized before (server/
// generation_service.h): the scheduler trusts it.
struct Request {
  RequestId id = 0;
  std::string external_id;  // the client's name for it, in logs and Abort
  std::string tenant;       // empty: the shared tenant
  int priority = 0;         // lower is more urgent

  std::vector<TokenId> prompt;  // not empty, < max_model_len
  SamplingParams sampling;
  int num_samples = 1;  // n: each is a sequence of its own

  int max_tokens = 0;  // >= 1, prompt + max_tokens <= max_model_len
  std::vector<TokenId> eos_tokens;  // empty if EOS is ignored
  std::vector<TokenId> stop_tokens;
  int num_logprobs = -1;         // as in BatchRow
  int num_prompt_logprobs = -1;  // as in BatchRow; reported with sample 0

  MonotonicTime arrival;
  // Limits of time: for the first sample to begin to run, for the first token,
  // and for all. One that passes ends the request.
  std::optional<MonotonicTime> queue_deadline;
  std::optional<MonotonicTime> first_token_deadline;
  std::optional<MonotonicTime> deadline;

  // Where tokens go. Shared with whoever reads them.
  std::shared_ptr<TokenStream> stream;
};

}  // namespace binarymos
