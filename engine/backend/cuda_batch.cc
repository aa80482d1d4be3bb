#include "engine/backend/cuda_batch.h"

#include <algorithm>
#include <span>

namespace binarymos {
absl::Status CudaBatch::Upload(const BatchView& batch, int tokens_per_block,
                               CudaDriver& driver) {
  FindBlocks(batch, tokens_per_block);
  const CudaUpload::Part parts[] = {
      {std::as_bytes(batch.tokens), tokens_},
      {std::as_bytes(batch.positions), positions_},
      {std::as_bytes(batch.kv_slots), kv_slots_},
      {std::as_bytes(batch.block_table_starts), block_table_starts_},
      {std::as_bytes(batch.logit_rows), logit_rows_},
      {std::as_bytes(std::span(blocks_)), query_blocks_},
      {std::as_bytes(batch.block_tables), block_tables_},
  };
  return upload_.Copy(parts, driver);
}

void CudaBatch::FindBlocks(const BatchView& batch, int tokens_per_block) {
  tokens_per_block_ = tokens_per_block;
  max_splits_ = 0;
  max_block_tokens_ = 0;
  blocks_.clear();
  for (int s = 0; s < batch.num_seqs(); ++s) {
    const int begin = batch.query_starts[s];
    // From the last token down: the longest work starts first.
    for (int end = batch.query_starts[s + 1]; end > begin;) {
      const int last = batch.positions[end - 1];
      const int in_tile = last % cuda::kAttentionTile + 1;
      const int count = std::min({tokens_per_block, in_tile, end - begin});
      const int splits = cuda::NumSplits(last);
      blocks_.push_back({s, end - count, count, splits});
      max_splits_ = std::max(max_splits_, splits);
      max_block_tokens_ = std::max(max_block_tokens_, count);
      end -= count;
    }
  }
}

absl::Status CudaBatch::Reserve(int64_t max_tokens, CudaDriver& driver) {
  constexpr size_t kTokenBytes =
      sizeof(int32_t) * 4 + sizeof(int64_t) + sizeof(cuda::QueryBlock);
  constexpr size_t kTableBytes = 64 * sizeof(BlockId);
  constexpr size_t kPadding = 128;  // of seven parts
  return upload_.Reserve(
      (max_tokens + 1) * (kTokenBytes + kTableBytes) + kPadding, driver);
}

}  // namespace binarymos
