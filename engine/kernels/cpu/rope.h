// Rotary position embedding, and the write of keys and values to the cache.
#pragma once

#include <cstdint>
#include <span>

#include "engine/kernels/cpu/parallel.h"

namespace binarymos::cpu {

struct RopeCall {
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;                    // even
  std::span<const int32_t> positions;  // [tokens]
  std::span<const int64_t> kv_slots;   // [tokens] block * kKvPage + offset
  const float* cos = nullptr;          // [positions of the model, head_dim / 2]
  const float* sin = nullptr;          // same
  float* q = nullptr;        // [tokens, num_heads, head_dim], in place
  float* k = nullptr;        // [tokens, num_kv_heads, head_dim], in place
  const float* v = nullptr;  // same shape
  // [num_blocks, num_kv_heads, kKvPage, head_dim], of type `kv`
  void* keys = nullptr;
  void* values = nullptr;
  KvType kv = KvType::kF16;
};

// Rotates the pairs (d, d + head_dim / 2) of q and k by the angle of the
// token's position; stores k and v. REQUIRES: the slots differ.
void RopeAndWriteKv(const CpuContext& context, const RopeCall& call);

}  // namespace binarymos::cpu
