#include "engine/kernels/cpu/rms_norm.h"

namespace binarymos::cpu {

void RmsNorm(const CpuContext& context, const float* x, const uint16_t* weight,
             float eps, int64_t rows, int64_t hidden, float* out) {
  context.pool.ParallelFor(rows, Grain(context.pool, rows, hidden / 8),
                           [&](int64_t begin, int64_t end) {
                             for (int64_t r = begin; r < end; ++r) {
                               context.kernels.rms_norm(x + r * hidden, weight,
                                                        eps, out + r * hidden,
                                                        hidden);
                             }
                           });
}

}  // namespace binarymos::cpu
