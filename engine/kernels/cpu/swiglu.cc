#include "engine/kernels/cpu/swiglu.h"

#include <algorithm>

namespace binarymos::cpu {

void SwiGlu(const CpuContext& context, const float* gate, const float* up,
            int64_t size, float* out) {
  constexpr int64_t kChunk = 1024;
  constexpr int64_t kChunkCost = kChunk / 16 * 16;  // exp and a division
  const int64_t chunks = (size + kChunk - 1) / kChunk;
  context.pool.ParallelFor(chunks, Grain(context.pool, chunks, kChunkCost),
                           [&](int64_t begin, int64_t end) {
                             const int64_t first = begin * kChunk;
                             context.kernels.swiglu(
                                 gate + first, up + first, out + first,
                                 std::min(size, end * kChunk) - first);
                           });
}

}  // namespace binarymos::cpu
