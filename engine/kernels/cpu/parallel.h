// How an operation is shared out among threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "engine/core/thread_pool.h"
#include "engine/kernels/cpu/cpu_kernels.h"

namespace binarymos::cpu {

// What every operation needs. Both outlive the call.
struct CpuContext {
  const CpuKernels& kernels;
  ThreadPool& pool;
};

// Sharing work with threads that poll for it costs about two microseconds. (Who
// sleeps comes later and is not waited for.) Costs are counted in vector
// operations of 16 floats, of which a core does about one per nanosecond.
inline constexpr int64_t kInlineWork = 6 << 10;
inline constexpr int64_t kWorkPerRange = 2 << 10;

// The grain for ThreadPool::ParallelFor over `count` items of `cost` each: all
// of them where waking the pool would not pay.
inline int64_t Grain(const ThreadPool& pool, int64_t count, int64_t cost) {
  cost = std::max<int64_t>(cost, 1);
  if (count <= kInlineWork / cost) return std::max<int64_t>(count, 1);
  const int64_t fair = count / (int64_t{4} * pool.num_threads());
  return std::max<int64_t>({1, kWorkPerRange / cost, fair});
}

}  // namespace binarymos::cpu
