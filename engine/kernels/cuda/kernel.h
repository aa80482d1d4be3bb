// Every kernel of the CUDA backend as one value: what a driver launches.
#pragma once

#include <variant>

#include "engine/kernels/cuda/arg_max.h"
#include "engine/kernels/cuda/attention.h"
#include "engine/kernels/cuda/binary_mos_multiply.h"
#include "engine/kernels/cuda/binary_mos_pack.h"
#include "engine/kernels/cuda/binary_mos_prepare.h"
#include "engine/kernels/cuda/float16_linear.h"
#include "engine/kernels/cuda/rms_norm.h"
#include "engine/kernels/cuda/rope.h"
#include "engine/kernels/cuda/rows.h"

namespace binarymos::cuda {

using Kernel =
    std::variant<PackSigns, PrepareBinaryMos, MultiplyBinaryMos<8, true>,
                 MultiplyBinaryMos<16, true>, MultiplyBinaryMos<8, false>,
                 MultiplyBinaryMos<12, false>, MultiplyBinaryMos<16, false>,
                 Float16Linear, RmsNorm, Embed, GatherRows, SwiGlu, SumGates,
                 RopeAndWriteKv<uint16_t>, RopeAndWriteKv<float>,
                 Attention<uint16_t>, Attention<float>, MergeAttention, ArgMax>;

}  // namespace binarymos::cuda
