// Causal attention over the paged KV cache, for a ragged batch.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/kernels/cpu/parallel.h"

namespace binarymos::cpu {

// Sequences are flattened one after the other; the tokens of a sequence in the
// batch have consecutive positions. Each attends to the cached positions
// [0, its own].
struct AttentionCall {
  int num_heads = 0;
  int num_kv_heads = 0;  // divides num_heads
  int head_dim = 0;
  std::span<const int32_t> positions;           // [tokens]
  std::span<const int32_t> query_starts;        // [sequences + 1]
  std::span<const int32_t> block_tables;        // all, one after the other
  std::span<const int32_t> block_table_starts;  // [sequences + 1]
  const float* q = nullptr;  // [tokens, num_heads, head_dim], rotated
  // [num_blocks, num_kv_heads, kKvPage, head_dim], of type `kv`
  const void* keys = nullptr;
  const void* values = nullptr;
  KvType kv = KvType::kF16;
  float* out = nullptr;  // [tokens, num_heads, head_dim]
};

// Runs attention and owns its scratch memory, which grows to the largest call
// and stays. One call at a time.
//
// Every query's splits are computed from nothing and merged ascending, so its
// result is the same, bit for bit, whether one thread does all of it or many
// threads share its splits, and whatever else is in the batch.
class CpuAttention {
 public:
  void Run(const CpuContext& context, const AttentionCall& call);

 private:
  // Consecutive tokens of one sequence whose queries share the reading of K, V.
  struct QueryBlock {
    int32_t sequence;
    int32_t first_token;
    int32_t num_tokens;
    int32_t num_splits;  // of its last token
  };

  void FindBlocks(const AttentionCall& call);
  // One task computes all splits of a (block, KV head).
  void RunWhole(const CpuContext& context, const AttentionCall& call,
                bool parallel);
  // One task computes one split of a (block, KV head): few, long queries.
  void RunSplit(const CpuContext& context, const AttentionCall& call);

  std::vector<QueryBlock> blocks_;
  std::vector<float> scratch_;
};

}  // namespace binarymos::cpu
