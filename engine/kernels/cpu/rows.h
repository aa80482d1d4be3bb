// Copies of chosen rows.
#pragma once

#include <cstdint>
#include <span>

#include "engine/kernels/cpu/parallel.h"

namespace binarymos::cpu {

// out[t] = table[tokens[t]] in f32. table: [vocab, hidden] f16; out:
// [tokens, hidden]. REQUIRES: 0 <= token < vocab.
void Embed(const CpuContext& context, const uint16_t* table, int64_t vocab,
           int64_t hidden, std::span<const int32_t> tokens, float* out);

// out[r] = x[rows[r]]. x: [num_x, hidden]; out: [rows, hidden], not
// overlapping x. REQUIRES: 0 <= row < num_x.
void GatherRows(const float* x, int64_t num_x, int64_t hidden,
                std::span<const int32_t> rows, float* out);

}  // namespace binarymos::cpu
