// What the scheduler asks the runner to compute in one step, and the answer.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/api/types.h"

namespace binarymos {

// Some tokens of one sequence: a chunk of its prompt, its newest token, or
// both. There is no prefill and no decode here: a row computes positions
// [first_position, first_position + num_tokens()).
//
// The spans point into memory of the scheduler and are valid until
// ModelRunner::Submit returns.
struct BatchRow {
  SlotId slot = 0;
  // The tokens to compute; empty if `token_of_step` is set.
  std::span<const TokenId> tokens;
  // If not kNoStep: compute one token, the one that this earlier step sampled
  // for this slot and that the host may not know yet.
  StepId token_of_step = kNoStep;
  int32_t first_position = 0;
  // Blocks that hold positions [0, first_position + num_tokens()).
  std::span<const BlockId> block_table;
  // Whether to sample a token after the row's last position.
  bool sample = false;
  // -1: none; 0: of the sampled token; n: also of the n most likely.
  int32_t num_logprobs = -1;
  // Log-probabilities of the row's own tokens from position 1 on, each given
  // its predecessors. -1: none; 0: of the token; n: also of the n most likely.
  int32_t num_prompt_logprobs = -1;
  // Tokens allowed next, one bit each, `[ceil(vocab_size / 32)]`; empty: all.
  std::span<const uint32_t> allowed_tokens;

  int num_tokens() const {
    return token_of_step == kNoStep ? static_cast<int>(tokens.size()) : 1;
  }
};

struct BatchPlan {
  StepId step = kNoStep;
  std::vector<BatchRow> rows;  // at most one per slot
  int num_tokens = 0;          // sum over rows; 0 means there is nothing to do

  bool empty() const { return rows.empty(); }
};

struct TokenLogprob {
  TokenId token = kNoToken;
  float logprob = 0.0f;
};

// A position's log-probabilities: of the token that stands there and, most
// likely first, of the alternatives asked for.
struct PositionLogprobs {
  TokenLogprob chosen;
  std::vector<TokenLogprob> top;
};

struct StepResultRow {
  SlotId slot = 0;
  TokenId token = kNoToken;  // kNoToken if the row did not sample
  // The logits of this row held NaN or Inf: there is no token, and the request
  // must end. Other rows are not affected.
  bool not_finite = false;
  PositionLogprobs logprobs;  // if num_logprobs >= 0
  // If num_prompt_logprobs >= 0: entry i belongs to position
  // max(1, first_position) + i. The last position of a chunk is reported with
  // the chunk that follows it.
  std::vector<PositionLogprobs> prompt_logprobs;
};

// Facts about one step that cost nothing to collect, and the gates when asked.
struct StepStats {
  int num_tokens = 0;
  int num_rows = 0;
  Duration compute_time{0};
  // Mean of the router's softmax over tokens and linear layers,
  // `[num_layers * num_experts]`; empty in steps that were not sampled.
  std::vector<float> mean_gate;
};

struct StepResult {
  StepId step = kNoStep;
  std::vector<StepResultRow> rows;  // same order as BatchPlan::rows
  StepStats stats;
};

}  // namespace binarymos
