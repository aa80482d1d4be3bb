// The table of the instruction set that the including file is compiled for.
// Included by cpu_kernels_portable.cc and the like for other sets.
#pragma once

#include "engine/kernels/cpu/attention_kernel.h"
#include "engine/kernels/cpu/cpu_kernels.h"
#include "engine/kernels/cpu/float16_linear_kernel.h"
#include "engine/kernels/cpu/int8_linear_kernel.h"
#include "engine/kernels/cpu/row_kernels.h"

namespace binarymos::cpu {
inline namespace BINARYMOS_CPU_ARCH {

inline constexpr CpuKernels MakeKernelTable(const char* name) {
  return {
      .name = name,
      .half_to_float = ConvertRow<uint16_t, float>,
      .float_to_half = ConvertRow<float, uint16_t>,
      .exp = ExpRow,
      .rms_norm = RmsNormRow,
      .swiglu = SwiGluRow,
      .rotate = RotateHead,
      .float16_linear = RunFloat16Linear,
      .quantize_row = QuantizeRow,
      .int8_linear = RunInt8Linear,
      .attend_split = AttendSplit,
      .merge_states = MergeStates,
      .finish_attention = FinishAttention,
  };
}

}  // namespace BINARYMOS_CPU_ARCH
}  // namespace binarymos::cpu
