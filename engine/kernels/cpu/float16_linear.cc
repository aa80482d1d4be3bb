#include "engine/kernels/cpu/float16_linear.h"

#include <algorithm>

namespace binarymos::cpu {

void Float16Linear(const CpuContext& context, const Float16LinearCall& call) {
  constexpr int64_t kTile = kFloat16TileOuts;
  const int64_t tiles = (call.out + kTile - 1) / kTile;
  const int64_t cost = kTile * (call.in / 16 + 1) * call.rows;
  context.pool.ParallelFor(
      tiles, Grain(context.pool, tiles, cost), [&](int64_t begin, int64_t end) {
        for (int64_t tile = begin; tile < end; ++tile) {
          const int64_t first = tile * kTile;
          context.kernels.float16_linear({
              .x = call.x,
              .rows = call.rows,
              .in = call.in,
              .weight = call.weight + first * call.in,
              .bias = call.bias == nullptr ? nullptr : call.bias + first,
              .outs = std::min(kTile, call.out - first),
              .accumulate = call.accumulate,
              .y = call.y + first,
              .y_stride = call.out,
          });
        }
      });
}

}  // namespace binarymos::cpu
