#include "engine/backend/cuda_batch.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <utility>

namespace binarymos {
namespace {

constexpr size_t kAlignment = 16;

size_t Align(size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

absl::Status CudaBatch::Upload(const BatchView& batch, int tokens_per_block,
                               CudaDriver& driver) {
  FindBlocks(batch, tokens_per_block);
  const struct {
    std::span<const std::byte> bytes;
    size_t& offset;
  } parts[] = {
      {std::as_bytes(batch.tokens), tokens_},
      {std::as_bytes(batch.positions), positions_},
      {std::as_bytes(batch.kv_slots), kv_slots_},
      {std::as_bytes(batch.block_table_starts), block_table_starts_},
      {std::as_bytes(batch.logit_rows), logit_rows_},
      {std::as_bytes(std::span(blocks_)), query_blocks_},
      {std::as_bytes(batch.block_tables), block_tables_},
  };
  size_t total = 0;
  for (const auto& part : parts) {
    part.offset = total;
    total += Align(part.bytes.size());
  }
  if (absl::Status status = ReserveBytes(total, driver); !status.ok()) {
    return status;
  }
  for (const auto& part : parts) {
    if (part.bytes.empty()) continue;
    std::memcpy(static_cast<char*>(pinned_.data()) + part.offset,
                part.bytes.data(), part.bytes.size());
  }
  if (total == 0) return absl::OkStatus();
  return driver.CopyToDevice(device_.data(), pinned_.data(), total);
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
  return ReserveBytes(
      (max_tokens + 1) * (kTokenBytes + kTableBytes) + 8 * kAlignment, driver);
}

absl::Status CudaBatch::ReserveBytes(size_t bytes, CudaDriver& driver) {
  if (bytes <= pinned_.bytes()) return absl::OkStatus();
  const size_t size = std::max(bytes, 2 * pinned_.bytes());
  absl::StatusOr<Buffer> pinned = driver.AllocatePinned(size);
  if (!pinned.ok()) return pinned.status();
  absl::StatusOr<Buffer> device = driver.AllocateDevice(size);
  if (!device.ok()) return device.status();
  pinned_ = *std::move(pinned);
  device_ = *std::move(device);
  ++num_moves_;
  return absl::OkStatus();
}

}  // namespace binarymos
