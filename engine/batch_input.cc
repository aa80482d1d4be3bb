#include "engine/batch_input.h"

#include "engine/core/check.h"

namespace binarymos {

TokenId SampledTokens::Get(SlotId slot, StepId step) const {
  BINARYMOS_CHECK_EQ(last_[slot].step, step) << "slot " << slot;
  return last_[slot].token;
}

BatchInput::BatchInput(int max_tokens, int max_seqs, int max_blocks) {
  tokens_.reserve(max_tokens);
  positions_.reserve(max_tokens);
  kv_slots_.reserve(max_tokens);
  query_starts_.reserve(max_seqs + 1);
  context_lens_.reserve(max_seqs);
  block_tables_.reserve(max_blocks);
  block_table_starts_.reserve(max_seqs + 1);
  logit_rows_.reserve(max_tokens);
  ranges_.reserve(max_seqs);
}

const BatchView& BatchInput::Build(const BatchPlan& plan,
                                   const SampledTokens& sampled,
                                   bool on_device) {
  tokens_.clear();
  positions_.clear();
  kv_slots_.clear();
  query_starts_.assign(1, 0);
  context_lens_.clear();
  block_tables_.clear();
  block_table_starts_.assign(1, 0);
  logit_rows_.clear();
  ranges_.clear();
  for (const BatchRow& row : plan.rows) AppendRow(row, sampled, on_device);
  BINARYMOS_CHECK_EQ(static_cast<int>(tokens_.size()), plan.num_tokens);
  view_ = BatchView{
      tokens_,       positions_,    kv_slots_,           query_starts_,
      context_lens_, block_tables_, block_table_starts_, logit_rows_};
  return view_;
}

void BatchInput::AppendRow(const BatchRow& row, const SampledTokens& sampled,
                           bool on_device) {
  const int num_tokens = row.num_tokens();
  const int end = row.first_position + num_tokens;
  BINARYMOS_CHECK_GE(num_tokens, 1) << "slot " << row.slot;
  BINARYMOS_CHECK_GE(row.first_position, 0) << "slot " << row.slot;
  BINARYMOS_CHECK_GE(static_cast<int64_t>(row.block_table.size()) * kBlockSize,
                     end)
      << "slot " << row.slot;

  if (row.token_of_step == kNoStep) {
    tokens_.insert(tokens_.end(), row.tokens.begin(), row.tokens.end());
  } else {
    // A row that was not finite sampled nothing. The scheduler learns of it
    // one step late and discards this row: any token will do.
    const TokenId token = sampled.Get(row.slot, row.token_of_step);
    tokens_.push_back(on_device           ? BatchView::TokenOfSlot(row.slot)
                      : token == kNoToken ? 0
                                          : token);
  }
  const int first_token = query_starts_.back();
  for (int position = row.first_position; position < end; ++position) {
    positions_.push_back(position);
    const int64_t block = row.block_table[position / kBlockSize];
    kv_slots_.push_back(block * kBlockSize + position % kBlockSize);
  }
  query_starts_.push_back(first_token + num_tokens);
  context_lens_.push_back(end);
  const size_t num_blocks = (end + kBlockSize - 1) / kBlockSize;
  block_tables_.insert(block_tables_.end(), row.block_table.begin(),
                       row.block_table.begin() + num_blocks);
  block_table_starts_.push_back(static_cast<int32_t>(block_tables_.size()));

  const int wanted = row.num_prompt_logprobs >= 0 ? num_tokens
                     : row.sample                 ? 1
                                                  : 0;
  const int first_row = static_cast<int>(logit_rows_.size());
  for (int i = num_tokens - wanted; i < num_tokens; ++i) {
    logit_rows_.push_back(first_token + i);
  }
  ranges_.push_back({first_row, first_row + wanted, end - wanted});
}

}  // namespace binarymos
