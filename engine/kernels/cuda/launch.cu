#include <algorithm>
#include <type_traits>
#include <utility>
#include <variant>

#include "engine/kernels/cuda/device_block.cuh"
#include "engine/kernels/cuda/launch.h"

namespace binarymos::cuda {
namespace {

// The number of blocks is said aloud, because without it ptxas aims at more of
// them and spills registers.
template <typename K>
__global__ void __launch_bounds__(K::kThreads, kBlocksPerSmOf<K>)
    Run(const __grid_constant__ K kernel) {
  extern __shared__ uint4 shared[];
  DeviceBlock block(shared);
  if constexpr (kNeedsWgmmaOf<K> && !DeviceBlock::kHasWgmma) {
    __trap();
  } else if constexpr (kClusterBlocksOf<K> == 1) {
    block.LaunchDependents();
    block.WaitForPrevious();
    kernel(block);
  } else if constexpr (DeviceBlock::kHasClusters) {
    kernel(block);
  }
}

template <typename K>
cudaError_t LaunchOne(const K& kernel, bool overlap, cudaStream_t stream) {
  const Grid grid = kernel.grid();
  if (grid.x == 0 || grid.y == 0) return cudaSuccess;
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};
  config.gridDim =
      dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y));
  config.blockDim = dim3(K::kThreads);
  config.dynamicSmemBytes = kernel.shared_bytes();
  config.stream = stream;
  config.attrs = attributes;
  if (kClusterBlocksOf < K >> 1) {
    cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = kClusterBlocksOf<K>;
    cluster.val.clusterDim.y = 1;
    cluster.val.clusterDim.z = 1;
  }
  if (overlap) {
    cudaLaunchAttribute& serialization = attributes[config.numAttrs++];
    serialization.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    serialization.val.programmaticStreamSerializationAllowed = 1;
  }
  return cudaLaunchKernelEx(&config, Run<K>, kernel);
}

// As much shared memory per block as the device has, and of the memory that
// shared memory and L1 divide the most to the former: kernels that ask for
// different divisions cannot be on a multiprocessor together.
template <typename K>
cudaError_t PrepareOne(int max_shared) {
  cudaFuncAttributes attributes;
  cudaError_t error = cudaFuncGetAttributes(&attributes, Run<K>);
  if (error != cudaSuccess) return error;
  error = cudaFuncSetAttribute(
      Run<K>, cudaFuncAttributeMaxDynamicSharedMemorySize,
      max_shared - static_cast<int>(attributes.sharedSizeBytes));
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(Run<K>,
                              cudaFuncAttributePreferredSharedMemoryCarveout,
                              cudaSharedmemCarveoutMaxShared);
}

template <size_t... kIndices>
cudaError_t PrepareAll(int max_shared, std::index_sequence<kIndices...>) {
  cudaError_t error = cudaSuccess;
  const auto prepare = [&](auto one) {
    if (error == cudaSuccess) error = one(max_shared);
  };
  (prepare(PrepareOne<std::variant_alternative_t<kIndices, Kernel>>), ...);
  return error;
}

}  // namespace

cudaError_t Launch(const Kernel& kernel, bool overlap, cudaStream_t stream) {
  return std::visit(
      [&](const auto& one) { return LaunchOne(one, overlap, stream); }, kernel);
}

cudaError_t PrepareKernels() {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  int max_shared = 0;
  error = cudaDeviceGetAttribute(
      &max_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  return PrepareAll(max_shared,
                    std::make_index_sequence<std::variant_size_v<Kernel>>());
}

int MaxActiveClusters(size_t shared_bytes) {
  int device = 0;
  int major = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor,
                             device) != cudaSuccess ||
      major < 9) {
    return 0;
  }
  using K = FusedBinaryMos<16>;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = K::kClusterBlocks;
  attribute.val.clusterDim.y = 1;
  attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(K::kClusterBlocks);
  config.blockDim = dim3(K::kThreads);
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  const cudaError_t error =
      cudaOccupancyMaxActiveClusters(&clusters, Run<K>, &config);
  if (error != cudaSuccess) {
    cudaGetLastError();  // clears it
    return 0;
  }
  return clusters;
}

bool HasWgmma() {
#ifdef BINARYMOS_SM90A
  int device = 0;
  int major = 0;
  int minor = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor,
                                device) == cudaSuccess &&
         cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor,
                                device) == cudaSuccess &&
         major == 9 && minor == 0;
#else
  return false;
#endif
}

}  // namespace binarymos::cuda
