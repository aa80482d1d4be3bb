// Compiled with -mavx2 -mfma -mf16c.
#include "engine/kernels/cpu/cpu_kernel_table.h"

static_assert(BINARYMOS_CPU_AVX2, "compile this file with its own flags");

namespace binarymos::cpu {

extern const CpuKernels kAvx2Kernels;
constexpr CpuKernels kAvx2Kernels = MakeKernelTable("avx2");

}  // namespace binarymos::cpu
