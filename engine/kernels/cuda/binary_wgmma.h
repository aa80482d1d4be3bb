// The 1-bit tensor core instruction of a warpgroup, on compute capability 9.0
// alone (sm_90a).
//
// wgmma.m64nNk256.b1 with .and.popc: D = popc(A & B) of 64 rows of A (signs)
// and N columns of B (planes), 256 bits each, for 128 threads in a row.
//   A, in registers: warp w has rows 16 w to 16 w + 15, each lane the fragment
//      of mma.m16n8k256 (binary_mos_layout.h): rows g, g + 8, words t and t + 4
//   D: of each 8 columns the fragment C of mma.m16n8k256, N / 2 counts a lane
//   B, in shared memory, by descriptor: core matrices of 8 columns and 16 bytes
//      of k, 128 bytes in a row; two side by side in k
// (PTX ISA, "Matrix Fragments for wgmma.mma_async.m64nNk256" and "Matrix
// Descriptor".) Here words of a row are in natural order, so A takes two loads
// of 8 bytes where mma takes one of 16.
//
// Descriptor: address / 16 in bits 0 to 13, the leading offset / 16 (from a
// core matrix to the next in k) in bits 16 to 29, the stride / 16 (to the next
// 8 columns) in bits 32 to 45; zeros elsewhere: no swizzle. Shared memory has
// 18 bits of address.
//
// The tensor core reads shared memory by another way than threads: whoever
// wrote it, copies included, says FenceForTensorCores() before the barrier.
#pragma once

#include <cstdint>

#include "engine/kernels/cuda/binary_mos_layout.h"
#include "engine/kernels/cuda/device_code.h"

namespace binarymos::cuda {

inline constexpr int kWarpgroup = 4 * kWarp;
inline constexpr int kWgmmaRows = 64;
inline constexpr int kCoreBytes = 128;
// Of 8 columns and 256 bits.
inline constexpr int kWgmmaColumnsBytes = 2 * kCoreBytes;

// A lane's part of D: count 4 j + i is the i-th of CountFragment, columns 8 j
// and on.
template <int kColumns>
struct WgmmaCounts {
  int32_t v[kColumns / 2];
};

// B whose core matrices follow each other: the two of 8 columns, then the next.
BINARYMOS_DEVICE uint64_t WgmmaDescriptor(uint32_t shared_address) {
  return uint64_t{shared_address} >> 4 | uint64_t{kCoreBytes >> 4} << 16 |
         uint64_t{kWgmmaColumnsBytes >> 4} << 32;
}

}  // namespace binarymos::cuda
