// Every kernel of the CUDA backend as one value: what a driver launches.
#pragma once

#include <type_traits>
#include <variant>

#include "engine/kernels/cuda/arg_max.h"
#include "engine/kernels/cuda/attention.h"
#include "engine/kernels/cuda/binary_mos_batch.h"
#include "engine/kernels/cuda/binary_mos_fast.h"
#include "engine/kernels/cuda/binary_mos_fused.h"
#include "engine/kernels/cuda/binary_mos_halves.h"
#include "engine/kernels/cuda/binary_mos_multiply.h"
#include "engine/kernels/cuda/binary_mos_pack.h"
#include "engine/kernels/cuda/binary_mos_prepare.h"
#include "engine/kernels/cuda/binary_mos_warpgroup.h"
#include "engine/kernels/cuda/float16_batch.h"
#include "engine/kernels/cuda/float16_linear.h"
#include "engine/kernels/cuda/float_attention.h"
#include "engine/kernels/cuda/merge_attention.h"
#include "engine/kernels/cuda/rms_norm.h"
#include "engine/kernels/cuda/rope.h"
#include "engine/kernels/cuda/rows.h"
#include "engine/kernels/cuda/sample.h"
#include "engine/kernels/cuda/sample_slots.h"
#include "engine/kernels/cuda/split_halves.h"

namespace binarymos::cuda {

using Kernel = std::variant<
    PackSigns, PrepareBinaryMos, MultiplyBinaryMos<8>, MultiplyBinaryMos<16>,
    BatchBinaryMos<8, 2>, BatchBinaryMos<8, 8>, BatchBinaryMos<12, 2>,
    BatchBinaryMos<12, 8>, BatchBinaryMos<16, 2>, BatchBinaryMos<16, 8>,
    WarpgroupBinaryMos<8, 1>, WarpgroupBinaryMos<8, 2>,
    WarpgroupBinaryMos<12, 1>, WarpgroupBinaryMos<12, 2>,
    WarpgroupBinaryMos<16, 1>, WarpgroupBinaryMos<16, 2>, FusedBinaryMos<8>,
    FusedBinaryMos<16>, PrepareHalves, FastBinaryMos<2, 2>, FastBinaryMos<4, 2>,
    FastBinaryMos<4, 4>, SplitHalves, Float16Linear, BatchFloat16Linear,
    RmsNorm, Embed, GatherRows, SwiGlu, SumGates, RoundToHalves, AddBias,
    RopeAndWriteKv<uint16_t>, RopeAndWriteKv<uint8_t>, RopeAndWriteKv<float>,
    Attention<uint16_t, 128>, Attention<uint8_t, 128>, Attention<uint16_t, 512>,
    FloatAttention, MergeAttention, ArgMax, SetSlots, Sample>;

// Whether the blocks of a kernel come in clusters.
template <typename K, typename = void>
inline constexpr int kClusterBlocksOf = 1;
template <typename K>
inline constexpr int
    kClusterBlocksOf<K, std::void_t<decltype(K::kClusterBlocks)>> =
        K::kClusterBlocks;

// Whether a kernel is made of instructions that sm_90a alone has.
template <typename K, typename = void>
inline constexpr bool kNeedsWgmmaOf = false;
template <typename K>
inline constexpr bool kNeedsWgmmaOf<K, std::void_t<decltype(K::kNeedsWgmma)>> =
    K::kNeedsWgmma;

// Blocks that must fit on a multiprocessor: two make waiting visible to fewer,
// unless a kernel says otherwise.
template <typename K, typename = void>
inline constexpr int kBlocksPerSmOf = 2;
template <typename K>
inline constexpr int kBlocksPerSmOf<K, std::void_t<decltype(K::kBlocksPerSm)>> =
    K::kBlocksPerSm;

}  // namespace binarymos::cuda
