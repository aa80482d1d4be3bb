// The ragged batch of one step as the kernels see it.
#pragma once

#include <cstdint>
#include <span>

#include "engine/api/types.h"

namespace binarymos {

// Host memory, owned by BatchInput (engine/batch_input.h), valid from
// Backend::BeginStep to Backend::SubmitStep. Sequences are flattened one after
// the other; token t of the batch belongs to the sequence s with
// query_starts[s] <= t < query_starts[s + 1].
struct BatchView {
  // [num_tokens]. Where the backend has a DeviceSampler, TokenOfSlot(s) is the
  // token that was sampled last for slot s.
  std::span<const TokenId> tokens;
  std::span<const int32_t> positions;     // [num_tokens]
  std::span<const int64_t> kv_slots;      // [num_tokens] block * 16 + offset
  std::span<const int32_t> query_starts;  // [num_seqs + 1]
  std::span<const int32_t> context_lens;  // [num_seqs] positions, this step's
                                          // own tokens included
  std::span<const BlockId> block_tables;  // all tables, one after the other
  std::span<const int32_t> block_table_starts;  // [num_seqs + 1]
  std::span<const int32_t> logit_rows;  // [num_logit_rows] tokens of the
                                        // batch whose logits are wanted

  static constexpr TokenId TokenOfSlot(SlotId slot) { return -1 - slot; }

  int num_tokens() const { return static_cast<int>(tokens.size()); }
  int num_seqs() const { return static_cast<int>(context_lens.size()); }
  int num_logit_rows() const { return static_cast<int>(logit_rows.size()); }
};

}  // namespace binarymos
