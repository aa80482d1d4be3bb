#include "engine/kernels/cpu/cpu_kernels.h"

#include "engine/kernels/cpu/cpu_features.h"

namespace binarymos::cpu {

extern const CpuKernels kPortableKernels;  // cpu_kernels_portable.cc
extern const CpuKernels kAvx2Kernels;      // cpu_kernels_avx2.cc, on x86-64

const CpuKernels& PortableKernels() { return kPortableKernels; }

const CpuKernels* Avx2Kernels() {
#if defined(__x86_64__)
  if (SupportsAvx2()) return &kAvx2Kernels;
#endif
  return nullptr;
}

}  // namespace binarymos::cpu
