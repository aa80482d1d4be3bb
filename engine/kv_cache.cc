#include "engine/kv_cache.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/core/check.h"

namespace binarymos {

absl::StatusOr<DType> KvCacheDType(std::string_view name) {
  if (name == "f16") return DType::kF16;
  if (name == "fp8_e4m3") return DType::kF8E4M3;
  if (name == "f32") return DType::kF32;
  return absl::InvalidArgumentError(
      absl::StrCat("--kv-cache-dtype is \"", std::string(name),
                   "\"; it must be f16, fp8_e4m3 or f32"));
}

absl::StatusOr<int> NumKvCacheBlocks(const KvCacheShape& shape,
                                     const KvCacheLimits& limits) {
  const int64_t block_bytes = shape.bytes_per_block();
  BINARYMOS_CHECK_GT(block_bytes, 0);
  const int64_t blocks_per_seq =
      (limits.max_model_len + kBlockSize - 1) / kBlockSize;
  int64_t num_blocks = std::max<int64_t>(0, limits.pool_bytes / block_bytes);
  if (num_blocks < blocks_per_seq) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the KV cache does not hold one sequence of ", limits.max_model_len,
        " positions: that takes ", blocks_per_seq, " blocks of ", block_bytes,
        " bytes (", kBlockSize, " positions x ", shape.num_layers,
        " layers x 2 x ", shape.num_kv_heads, " heads x ", shape.head_dim,
        " x ", SizeOf(shape.dtype), " bytes) = ", blocks_per_seq * block_bytes,
        " bytes, and the pool has ", limits.pool_bytes,
        " bytes; raise --kv-cache-memory to at least ",
        blocks_per_seq * block_bytes, " or lower --max-model-len to at most ",
        num_blocks * kBlockSize));
  }
  if (limits.cap_at_working_set) {
    num_blocks = std::min(num_blocks, blocks_per_seq * limits.max_num_seqs);
  }
  // Slots (block * 16 + offset) of one pool must be countable in 31 bits, so
  // that nobody downstream has to think about it.
  constexpr int64_t kMaxBlocks =
      std::numeric_limits<int32_t>::max() / kBlockSize;
  return static_cast<int>(std::min(num_blocks, kMaxBlocks));
}

absl::StatusOr<KvCache> KvCache::Allocate(Backend& backend,
                                          const KvCacheShape& shape,
                                          int num_blocks) {
  KvCache cache(shape, num_blocks);
  const Shape layer_shape{num_blocks, shape.num_kv_heads, kBlockSize,
                          shape.head_dim};
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    for (int part = 0; part < 2; ++part) {
      absl::StatusOr<Tensor> tensor =
          backend.Allocate(shape.dtype, layer_shape);
      if (!tensor.ok()) return tensor.status();
      cache.memory_.push_back(*std::move(tensor));
    }
    const size_t keys = cache.memory_.size() - 2;
    cache.layers_.push_back(
        {cache.memory_[keys].view(), cache.memory_[keys + 1].view()});
  }
  return cache;
}

}  // namespace binarymos
