// The memory of the paged KV cache. Which block belongs to whom is accounted
// for by the scheduler (scheduler/kv_cache_manager.h).
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/api/types.h"
#include "engine/backend/backend.h"
#include "engine/core/tensor.h"

namespace binarymos {

// "f16", "fp8_e4m3" or "f32", as --kv-cache-dtype has it. INVALID_ARGUMENT,
// with the names that there are, if it is none of them.
//
// In e4m3 keys and values have no scale: from 2^-6 to 448 a code is within 2^-4
// of what it stands for, and those of models/tales reach 12.7 and 5.4, 98 % of
// them above 2^-6 (docs/quality.md). Inside its range a floating type gains
// nothing from a scale, and a scale per head would have to be known before the
// first key is written: no checkpoint has it.
absl::StatusOr<DType> KvCacheDType(std::string_view name);

// Sizes that decide how many bytes a block takes.
struct KvCacheShape {
  int num_layers = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  DType dtype = DType::kF16;  // or kF8E4M3, or kF32 for comparisons

  // Keys and values of one position in all layers.
  int64_t bytes_per_token() const {
    return int64_t{2} * num_layers * num_kv_heads * head_dim *
           static_cast<int64_t>(SizeOf(dtype));
  }
  int64_t bytes_per_block() const { return bytes_per_token() * kBlockSize; }
};

// How many blocks a pool of this size has.
struct KvCacheLimits {
  int64_t pool_bytes = 0;
  int max_num_seqs = 0;
  int max_model_len = 0;
  // Whether to stop at the blocks that max_num_seqs sequences of max_model_len
  // fill. For a pool whose size nobody asked for.
  bool cap_at_working_set = false;
};

// RESOURCE_EXHAUSTED, with the arithmetic and the flags to change, if the pool
// does not hold one sequence of max_model_len.
absl::StatusOr<int> NumKvCacheBlocks(const KvCacheShape& shape,
                                     const KvCacheLimits& limits);

// Owns keys and values of every layer, in device memory. Confined to the
// serving-loop thread.
class KvCache {
 public:
  // RESOURCE_EXHAUSTED if the device does not have the memory.
  static absl::StatusOr<KvCache> Allocate(Backend& backend,
                                          const KvCacheShape& shape,
                                          int num_blocks);

  int num_blocks() const { return num_blocks_; }
  int64_t bytes() const { return shape_.bytes_per_block() * num_blocks_; }
  const KvCacheShape& shape() const { return shape_; }

  // [num_layers]
  std::span<const KvLayer> layers() const { return layers_; }

 private:
  KvCache(const KvCacheShape& shape, int num_blocks)
      : shape_(shape), num_blocks_(num_blocks) {}

  KvCacheShape shape_;
  int num_blocks_;
  std::vector<Tensor> memory_;   // [2 * num_layers]
  std::vector<KvLayer> layers_;  // [num_layers] views of memory_
};

}  // namespace binarymos
