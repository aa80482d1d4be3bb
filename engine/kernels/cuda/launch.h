// The way from a kernel's arguments to the device. Only in builds with CUDA.
#pragma once

#include <cuda_runtime_api.h>

#include "engine/kernels/cuda/kernel.h"

namespace binarymos::cuda {

// Enqueues `kernel` in `stream`, which says on which device. A launch without
// blocks does nothing. What the kernel itself does wrong shows up at the next
// synchronization. Any thread.
cudaError_t Launch(const Kernel& kernel, cudaStream_t stream);

// cudaErrorNoKernelImageForDevice, or the like, where the current device can
// run none of the kernels that were compiled.
cudaError_t FindKernels();

}  // namespace binarymos::cuda
