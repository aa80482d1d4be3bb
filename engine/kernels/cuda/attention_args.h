// What the attention kernels have in common: their arguments, the tiles and
// splits at absolute positions, and how splits are merged.
#pragma once

#include <cstdint>

#include "engine/kernels/cuda/canonical_math.h"
#include "engine/kernels/cuda/device_code.h"
#include "engine/kernels/cuda/rope.h"

namespace binarymos::cuda {

inline constexpr int kAttentionTile = 64;
inline constexpr int kAttentionSplit = 256;

// Consecutive tokens of one sequence whose queries share the reading of K, V.
// Their positions lie in one tile, so that all have the same tiles before it.
struct QueryBlock {
  int32_t sequence;
  int32_t first_token;
  int32_t num_tokens;
  int32_t num_splits;
};

constexpr int NumSplits(int position) { return position / kAttentionSplit + 1; }

struct AttentionArgs {
  int num_heads = 0;
  int num_kv_heads = 0;  // divides num_heads
  int head_dim = 0;      // even
  float scale = 0.0f;
  int64_t num_blocks = 0;                       // of queries
  const QueryBlock* blocks = nullptr;           // [num_blocks]
  int tokens_per_block = 1;                     // at most
  const int32_t* positions = nullptr;           // [tokens]
  const int32_t* block_tables = nullptr;        // all, one after the other
  const int32_t* block_table_starts = nullptr;  // [sequences + 1]
  const float* q = nullptr;
  float* out = nullptr;
  // [tokens, heads, num_splits, head_dim + 2] where splits are apart: largest
  // score, sum, values.
  float* states = nullptr;
  int num_splits = 0;  // of the longest context; 0: one block does all
  int num_tiles = 1;   // in shared memory at a time, 1 to 3
  // Where present: q is not rotated yet, and key and value of each token's own
  // position are not in the cache; the kernel does what RopeAndWriteKv would.
  // Blocks of one token only. k, v [tokens, kv_heads, head_dim] f32.
  const float* new_keys = nullptr;
  const float* new_values = nullptr;
  const int64_t* kv_slots = nullptr;  // [tokens]
  const float* cos = nullptr;         // [positions, head_dim / 2]
  const float* sin = nullptr;

  // Query heads per KV head. On the host too.
  constexpr int group() const { return num_heads / num_kv_heads; }
  BINARYMOS_DEVICE int64_t StateOf(int64_t token, int head, int split) const {
    return ((token * num_heads + head) * num_splits + split) *
           (head_dim + int64_t{2});
  }
  // Element `d` of a head's vector, rotated by the token's position.
  BINARYMOS_DEVICE float Rotated(const float* head, int64_t token,
                                 int d) const {
    const int half = head_dim / 2;
    const int i = d < half ? d : d - half;
    const int64_t at = int64_t{positions[token]} * half + i;
    const RopePair pair = RotatePair(head[i], head[i + half], cos[at], sin[at]);
    return d < half ? pair.a : pair.b;
  }
  // The first position that no query of the block sees in splits below `end`.
  BINARYMOS_DEVICE int PastOf(const QueryBlock& queries, int end) const {
    const int past =
        positions[queries.first_token + queries.num_tokens - 1] + 1;
    return past < end * kAttentionSplit ? past : end * kAttentionSplit;
  }
  // The first position that is not copied from the cache.
  BINARYMOS_DEVICE int CopiedOf(const QueryBlock& queries, int past) const {
    const bool is_new =
        new_keys != nullptr && past == positions[queries.first_token] + 1;
    return is_new ? past - 1 : past;
  }
};

// What the merge of a further split does to sums and values.
struct MergeFactors {
  float max, keep, add;
};
BINARYMOS_DEVICE MergeFactors FactorsOf(float total_max, float next_max) {
  const float max = Larger(total_max, next_max);
  return {max, Exp(total_max - max), Exp(next_max - max)};
}

}  // namespace binarymos::cuda
