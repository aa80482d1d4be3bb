#include "engine/kernels/cpu/cpu_kernels.h"

#include "engine/kernels/cpu/cpu_features.h"

namespace binarymos::cpu {

extern const CpuKernels kPortableKernels;  // cpu_kernels_portable.cc
extern const CpuKernels kAvx2Kernels;      // cpu_kernels_avx2.cc, on x86-64
extern const CpuKernels kAvx512Kernels;    // cpu_kernels_avx512.cc, on x86-64
extern const CpuKernels kNeonKernels;      // cpu_kernels_neon.cc, on AArch64

const CpuKernels& PortableKernels() { return kPortableKernels; }

const CpuKernels* Avx2Kernels() {
#if defined(__x86_64__)
  if (SupportsAvx2()) return &kAvx2Kernels;
#endif
  return nullptr;
}

const CpuKernels* Avx512Kernels() {
#if defined(__x86_64__)
  if (SupportsAvx512()) return &kAvx512Kernels;
#endif
  return nullptr;
}

const CpuKernels* NeonKernels() {
#if defined(__aarch64__)
  return &kNeonKernels;
#else
  return nullptr;
#endif
}

}  // namespace binarymos::cpu
