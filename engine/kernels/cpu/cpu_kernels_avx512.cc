// Compiled with the flags of AVX-512.
#include "engine/kernels/cpu/cpu_kernel_table.h"

static_assert(BINARYMOS_CPU_AVX2, "compile this file with its own flags");

namespace binarymos::cpu {

extern const CpuKernels kAvx512Kernels;
constexpr CpuKernels kAvx512Kernels = MakeKernelTable("avx512");

}  // namespace binarymos::cpu
