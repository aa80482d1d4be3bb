// Compiled for AArch64 with BINARYMOS_CPU_NEON. Run under an emulator only, see
// binary_mos_linear_neon.cc.
#include "engine/kernels/cpu/cpu_kernel_table.h"

namespace binarymos::cpu {

extern const CpuKernels kNeonKernels;
constexpr CpuKernels kNeonKernels = MakeKernelTable("neon");

}  // namespace binarymos::cpu
