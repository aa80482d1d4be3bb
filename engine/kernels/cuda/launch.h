// The way from a kernel's arguments to the device. Only in builds with CUDA.
#pragma once

#include <cuda_runtime_api.h>

#include "engine/kernels/cuda/kernel.h"

namespace binarymos::cuda {

// Enqueues `kernel` in `stream`, which says on which device. `overlap`: its
// blocks may begin before the kernel ahead of it in the stream has ended
// (programmatic dependent launch; device_code.h); compute capability 9.0, and
// all or none of the kernels in a row. A launch without blocks does nothing.
// What the kernel itself does wrong shows up at the next synchronization. Any
// thread. REQUIRES: PrepareKernels() on this device.
cudaError_t Launch(const Kernel& kernel, bool overlap, cudaStream_t stream);

// Lets the kernels have the shared memory that they ask for on the current
// device. cudaErrorNoKernelImageForDevice, or the like, where it can run none
// of the kernels that were compiled.
cudaError_t PrepareKernels();

// How many clusters of FusedBinaryMos with `shared_bytes` the current device
// runs at once; 0 where it has none. REQUIRES: PrepareKernels().
int MaxActiveClusters(size_t shared_bytes);

// Whether the current device runs kernels with kNeedsWgmma, and they were
// compiled.
bool HasWgmma();

}  // namespace binarymos::cuda
