#include "engine/kernels/cpu/cpu_kernel_table.h"

namespace binarymos::cpu {

extern const CpuKernels kPortableKernels;
constexpr CpuKernels kPortableKernels = MakeKernelTable("portable");

}  // namespace binarymos::cpu
