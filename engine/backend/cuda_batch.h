// The ragged batch of one step in device memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "engine/backend/batch_view.h"
#include "engine/backend/cuda_driver.h"
#include "engine/backend/cuda_upload.h"

namespace binarymos {

// Packs a batch and the queries that blocks of the attention kernel share into
// one copy (cuda_upload.h). While its memory does not move, batches of as many
// tokens, sequences, logit rows and blocks of queries have their arrays at the
// same addresses. Confined to the backend's thread.
class CudaBatch {
 public:
  // Enqueues the copy. Blocks of queries get up to `tokens_per_block` tokens.
  // REQUIRES: as CudaUpload::Copy.
  absl::Status Upload(const BatchView& batch, int tokens_per_block,
                      CudaDriver& driver);

  // Makes room for batches of `max_tokens` tokens with tables of 64 blocks
  // each, or longer ones of fewer.
  absl::Status Reserve(int64_t max_tokens, CudaDriver& driver);
  // Times that the memory has moved.
  int num_moves() const { return upload_.num_moves(); }

  // Of the last Upload; 0 before it.
  int tokens_per_block() const { return tokens_per_block_; }

  // Device memory, see BatchView.
  const int32_t* tokens() const { return At<int32_t>(tokens_); }
  const int32_t* positions() const { return At<int32_t>(positions_); }
  const int64_t* kv_slots() const { return At<int64_t>(kv_slots_); }
  const int32_t* block_tables() const { return At<int32_t>(block_tables_); }
  const int32_t* block_table_starts() const {
    return At<int32_t>(block_table_starts_);
  }
  const int32_t* logit_rows() const { return At<int32_t>(logit_rows_); }

  // [num_query_blocks()], the longest contexts of a sequence first.
  const cuda::QueryBlock* query_blocks() const {
    return At<cuda::QueryBlock>(query_blocks_);
  }
  int64_t num_query_blocks() const {
    return static_cast<int64_t>(blocks_.size());
  }
  int max_splits() const { return max_splits_; }  // of a query block
  int max_block_tokens() const { return max_block_tokens_; }

 private:
  template <typename T>
  const T* At(size_t offset) const {
    return upload_.At<T>(offset);
  }
  void FindBlocks(const BatchView& batch, int tokens_per_block);

  int tokens_per_block_ = 0;
  int max_splits_ = 0;
  int max_block_tokens_ = 0;
  std::vector<cuda::QueryBlock> blocks_;
  CudaUpload upload_;
  // Offsets in it, in bytes.
  size_t tokens_ = 0;
  size_t positions_ = 0;
  size_t kv_slots_ = 0;
  size_t block_table_starts_ = 0;
  size_t logit_rows_ = 0;
  size_t query_blocks_ = 0;
  size_t block_tables_ = 0;  // last: their length changes from step to step
};

}  // namespace binarymos
