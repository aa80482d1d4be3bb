#include "engine/kernels/cpu/rows.h"

#include <algorithm>

#include "engine/core/check.h"

namespace binarymos::cpu {

void Embed(const CpuContext& context, const uint16_t* table, int64_t vocab,
           int64_t hidden, std::span<const int32_t> tokens, float* out) {
  const auto count = static_cast<int64_t>(tokens.size());
  context.pool.ParallelFor(
      count, Grain(context.pool, count, hidden / 16),
      [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          BINARYMOS_CHECK(tokens[t] >= 0 && tokens[t] < vocab)
              << "token " << tokens[t];
          context.kernels.half_to_float(table + tokens[t] * hidden,
                                        out + t * hidden, hidden);
        }
      });
}

void GatherRows(const float* x, int64_t num_x, int64_t hidden,
                std::span<const int32_t> rows, float* out) {
  for (const int32_t row : rows) {
    BINARYMOS_CHECK(row >= 0 && row < num_x) << "row " << row;
    out = std::copy_n(x + row * hidden, hidden, out);
  }
}

}  // namespace binarymos::cpu
