#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/core/tensor.h"

namespace binarymos::reference {

// One query against the cached positions [0, position] of its sequence:
// softmax(q · k / sqrt(head_dim)) · v, per head. Query head h uses KV head
// h / (num_heads / num_kv_heads).
// q: [num_heads * head_dim] f32; keys, values: [num_blocks, num_kv_heads,
// page, head_dim] f16, f32 or e4m3; block_table: the sequence's blocks; result:
// [num_heads * head_dim].
std::vector<double> Attention(const ConstTensorView& q,
                              const ConstTensorView& keys,
                              const ConstTensorView& values,
                              std::span<const int32_t> block_table,
                              int position);

}  // namespace binarymos::reference
