#include <variant>

#include "engine/kernels/cuda/device_block.cuh"
#include "engine/kernels/cuda/launch.h"

namespace binarymos::cuda {
namespace {

// More than this has to be asked for, per kernel and device.
constexpr size_t kDefaultShared = 48 << 10;

// Blocks that must fit on a multiprocessor: two make waiting visible to fewer.
// Said aloud, because without it ptxas aims at more of them and spills
// registers.
constexpr int kBlocksPerSm = 2;

template <typename K>
__global__ void __launch_bounds__(K::kThreads, kBlocksPerSm)
    Run(const K kernel) {
  extern __shared__ uint4 shared[];
  DeviceBlock block(shared);
  kernel(block);
}

template <typename K>
cudaError_t LaunchOne(const K& kernel, cudaStream_t stream) {
  const Grid grid = kernel.grid();
  if (grid.x == 0 || grid.y == 0) return cudaSuccess;
  const size_t shared = kernel.shared_bytes();
  if (shared > kDefaultShared) {
    const cudaError_t error = cudaFuncSetAttribute(
        Run<K>, cudaFuncAttributeMaxDynamicSharedMemorySize,
        static_cast<int>(shared));
    if (error != cudaSuccess) return error;
  }
  Run<K><<<dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y)),
           K::kThreads, shared, stream>>>(kernel);
  return cudaGetLastError();
}

}  // namespace

cudaError_t Launch(const Kernel& kernel, cudaStream_t stream) {
  return std::visit([&](const auto& one) { return LaunchOne(one, stream); },
                    kernel);
}

cudaError_t FindKernels() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, Run<PackSigns>);
}

}  // namespace binarymos::cuda
