// The mutable half of a request: one sample and how far it has come.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/api/types.h"
#include "scheduler/block_hash.h"
#include "scheduler/request.h"
#include "scheduler/token_stream.h"

namespace binarymos {

struct TenantShare;

inline constexpr SlotId kNoSlot = -1;

// The cache blocks of a sequence. Written by KvCacheManager only.
struct SequenceBlocks {
  std::vector<BlockId> table;     // block i holds positions [16 i, 16 i + 16)
  std::vector<BlockHash> hashes;  // of the first full blocks of known tokens
  int num_cached = 0;   // blocks of `table` that were offered to the cache
  int num_matched = 0;  // that the cache held when it was last asked
};

// Where a sequence stands with the scheduler. Written by Scheduler only.
struct SequencePlace {
  enum class State { kWaiting, kRunning, kFinished };

  State state = State::kWaiting;
  SlotId slot = kNoSlot;
  int num_rows_in_flight = 0;  // rows of steps that are not committed
  // Not running any more, but a row in flight still uses blocks and slot.
  bool held = false;
  TenantShare* share = nullptr;  // of its tenant; until it ends
  int64_t order = -1;            // of its first admission; -1: none yet
  int num_overtaken = 0;         // by later ones of its tenant
  int num_charged = 0;           // positions that its tenant was charged for
  int num_cached_tokens = 0;  // found in the prefix cache when first scheduled
  int num_preemptions = 0;
  RequestTimes times;
  // Of the prompt from position 1 on, until they are reported.
  std::vector<PositionLogprobs> prompt_logprobs;
  bool prompt_logprobs_done = false;
};

// One sample of a request: its tokens, and how many of them were computed or
// are being computed. `num_computed_tokens` is optimistic: it counts the steps
// in flight. A token that such a step samples is pending: it has a position,
// but its id is not known yet.
class Sequence {
 public:
  Sequence(std::shared_ptr<const Request> request, int sample,
           int max_model_len);

  const Request& request() const { return *request_; }
  const std::shared_ptr<const Request>& shared_request() const {
    return request_;
  }
  int sample() const { return sample_; }

  // Known tokens: prompt and output.
  std::span<const TokenId> tokens() const { return tokens_; }
  std::span<const TokenId> output() const {
    return tokens().subspan(request_->prompt.size());
  }
  int num_tokens() const { return static_cast<int>(tokens_.size()); }
  int num_prompt_tokens() const {
    return static_cast<int>(request_->prompt.size());
  }
  int num_output_tokens() const { return num_tokens() - num_prompt_tokens(); }
  // What num_tokens() can grow to.
  int max_num_tokens() const {
    return num_prompt_tokens() + max_output_tokens_;
  }

  int num_computed_tokens() const { return num_computed_; }
  int num_pending_tokens() const { return num_pending_; }
  // The step that samples the newest pending token.
  StepId pending_step() const { return pending_step_; }

  // Tokens that the next step could compute: all known ones that are left, or
  // the newest pending one unless it is the last that may be sampled.
  int num_computable_tokens() const;

  // --- Transitions ---

  // Begins (again) behind `num_tokens` positions that the cache holds, and
  // makes room for all tokens to come. REQUIRES: nothing is pending.
  void Start(int num_tokens);
  // Step `step` computes the next `num_tokens` tokens. Returns whether it
  // samples: it does if it reaches the end. REQUIRES: num_tokens <=
  // num_computable_tokens().
  bool Advance(int num_tokens, StepId step);
  // What was computed is lost. Pending tokens stay pending.
  void Restart() { num_computed_ = 0; }
  // The oldest pending token is known. Returns why the sequence ends with it,
  // if it does.
  std::optional<FinishReason> Append(TokenId token);
  // The sequence ends with its `num_tokens`-th output token, kStopString.
  void StopAfter(int num_tokens);

  SequenceBlocks blocks;
  SequencePlace place;

 private:
  std::shared_ptr<const Request> request_;
  int sample_ = 0;
  std::vector<TokenId> tokens_;
  int num_computed_ = 0;
  int num_pending_ = 0;
  StepId pending_step_ = kNoStep;
  int max_output_tokens_ = 0;
  FinishReason reason_at_max_ = FinishReason::kLength;
};

}  // namespace binarymos
