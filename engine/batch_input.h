// Turns a BatchPlan into the flat arrays that kernels read.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/api/batch_plan.h"
#include "engine/api/types.h"
#include "engine/backend/backend.h"

namespace binarymos {

// The token that each slot sampled last, by step. A row of a later plan may
// refer to it before the scheduler has seen it (BatchRow::token_of_step).
// Confined to the thread that computes.
class SampledTokens {
 public:
  explicit SampledTokens(int max_num_seqs) : last_(max_num_seqs) {}

  void Set(SlotId slot, StepId step, TokenId token) {
    last_[slot] = {step, token};
  }
  void Clear(SlotId slot) { last_[slot] = {}; }

  // REQUIRES: `step` is the newest step that sampled for `slot`.
  TokenId Get(SlotId slot, StepId step) const;

 private:
  struct Entry {
    StepId step = kNoStep;
    TokenId token = kNoToken;
  };
  std::vector<Entry> last_;  // [max_num_seqs]
};

// Owns the memory behind BatchView; allocates only while batches grow. Confined
// to the thread that computes.
class BatchInput {
 public:
  // The logit rows of one plan row: entries [begin, end) of
  // BatchView::logit_rows. Logit row begin + i belongs to the token at
  // position first_position + i of the row; the last one is the row's last
  // token, which is where a sampled token comes from.
  struct LogitRange {
    int begin = 0;
    int end = 0;
    int first_position = 0;
  };

  // Room for batches of this size from the start.
  BatchInput(int max_tokens, int max_seqs, int max_blocks);

  // Flattens `plan`; the view and logit_ranges() are valid until the next call.
  // Rows with num_prompt_logprobs >= 0 want the logits of all their tokens;
  // other rows that sample, of their last.
  // A token that a step before sampled is taken from `sampled`, or, if the
  // backend samples (`on_device`), left to it.
  // REQUIRES: rows have tokens, and block tables that hold their positions.
  const BatchView& Build(const BatchPlan& plan, const SampledTokens& sampled,
                         bool on_device = false);

  const std::vector<LogitRange>& logit_ranges() const { return ranges_; }

 private:
  void AppendRow(const BatchRow& row, const SampledTokens& sampled,
                 bool on_device);

  std::vector<TokenId> tokens_;
  std::vector<int32_t> positions_;
  std::vector<int64_t> kv_slots_;
  std::vector<int32_t> query_starts_;
  std::vector<int32_t> context_lens_;
  std::vector<BlockId> block_tables_;
  std::vector<int32_t> block_table_starts_;
  std::vector<int32_t> logit_rows_;
  std::vector<LogitRange> ranges_;  // [rows of the plan]
  BatchView view_;
};

}  // namespace binarymos
