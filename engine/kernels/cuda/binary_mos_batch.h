// Second half of the binary linear for several tokens: signs times planes on
// tensor cores (binary_mos_output.h has the end).
//
//   S = sum of ±q of a slice (binary_mos_layout.h)
//   acc = fma(S, m / qmax, acc), slices ascending inside 8 groups of slices
//
// signs [out, in], planes and slices of PrepareBinaryMos  ->  y [tokens, out]
//
// Threads. A block has kTiles * 16 outputs and 8 tokens: the columns of a B
// fragment are tokens, one MMA per plane. Warp w computes group w of the
// canonical order, so no two warps of a block read the same signs or planes,
// and shared memory is for the end alone. A slice goes from the highest plane
// to the lowest in the accumulators of the tensor cores, doubled in between:
// one instruction per count and plane.
//
// Bytes per block: kTiles * 2 in (signs) and 16 in (planes, P = 16). A sign is
// one bit and a token's input 16, so blocks are wide in outputs: 128, or 32
// where that leaves multiprocessors idle. 64 tokens and 4096 x 4096 on an H200:
// 256 blocks that read 16 MB of signs and 16 MB of planes from L2, 524,288
// MMAs. Measured there: 1.53 clocks per MMA and multiprocessor, so 3.1 us; with
// 4 additions per MMA on two pipes about as many. Predicted 7 us, and 17 for
// 4096 x 11008; measured with cold caches 16 and 39. What is left may be
// waiting, which was not measured: a warp asks for four planes at a time.
#pragma once

#include "engine/kernels/cuda/binary_mos_output.h"

namespace binarymos::cuda {

// kPlanes: 8, 12 or 16. REQUIRES: args.tokens > 1.
template <int kPlanes, int kTiles>
struct BatchBinaryMos {
  static constexpr int kThreads = kWarp * kSumGroups;
  static constexpr int kRows = kTiles * kMmaRows;
  static constexpr int kTokens = kMmaColumns;
  // For 12.0 the compiler emulates the instruction, with 166 registers.
  static constexpr int kBlocksPerSm = kDeviceArch < 1200 ? 2 : 1;

  MultiplyArgs args;

  Grid grid() const {
    return {CeilDiv(args.shape.num_tiles(), kTiles),
            CeilDiv(args.tokens, kTokens)};
  }
  size_t shared_bytes() const { return sizeof(Shared); }

  template <typename Block>
  BINARYMOS_DEVICE void operator()(Block& block) const {
    auto& shared = *static_cast<Shared*>(block.shared());
    typename Block::template PerThread<Sums> sums;
    block.ForEach([&](int thread) { sums[thread] = {}; });
    const int64_t longest = CeilDiv(args.shape.num_slices(), kSumGroups);
    BINARYMOS_NO_UNROLL
    for (int64_t i = 0; i < longest; ++i) AddSlice(block, i, sums);
    block.ForEach([&](int thread) { Publish(thread, sums[thread], shared); });
    block.Sync();
    shared.Finish(block, args, block.x() * kRows, block.y() * kTokens,
                  kThreads);
  }

 private:
  // Planes whose fragments are asked for together.
  static constexpr int kDepth = 4;
  static_assert(kPlanes % kDepth == 0);

  // Of one thread: rows g and g + 8 of each tile, tokens 2 t and 2 t + 1.
  struct Sums {
    float v[kTiles][4];
  };
  struct Signs {
    SignFragment v[kTiles];
  };
  struct Planes {
    PlaneFragment v[kDepth];
  };
  struct Counts {
    CountFragment v[kTiles];
  };
  using Shared = PartialSums<kTokens, kRows>;

  // The warp's group has it, or it is -1.
  BINARYMOS_DEVICE int64_t Slice(int thread, int64_t i) const {
    return SliceOfGroup(thread / kWarp, i, args.shape.num_slices());
  }

  BINARYMOS_DEVICE Signs LoadSigns(int64_t row_block, int thread,
                                   int64_t slice) const {
    const int64_t num_slices = args.shape.num_slices();
    const int64_t left = args.shape.num_tiles() - row_block * kTiles;
    const uint32_t* first =
        args.signs + (row_block * kTiles * num_slices + slice) * kTileWords +
        thread % kWarp * 4;
    Signs signs;
    BINARYMOS_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      signs.v[tile] =
          slice < 0 || tile >= left
              ? SignFragment{}
              : LoadPack<SignFragment>(first + tile * num_slices * kTileWords);
    }
    return signs;
  }

  // Planes `highest`, highest - 1, ...
  BINARYMOS_DEVICE Planes LoadPlanes(int64_t column_block, int thread,
                                     int64_t slice, int highest) const {
    if (slice < 0) return {};
    const PlaneLayout layout{args.tokens, args.shape.num_slices(), kPlanes};
    constexpr int kPlaneWords = kMmaColumns * kSliceWords;
    const uint32_t* first = args.planes +
                            layout.GroupWord(column_block, slice, highest) +
                            thread % kWarp * 2;
    Planes planes;
    BINARYMOS_UNROLL
    for (int i = 0; i < kDepth; ++i) {
      planes.v[i] = LoadPack<PlaneFragment>(first - i * kPlaneWords);
    }
    return planes;
  }

  template <typename Block>
  BINARYMOS_DEVICE void AddSlice(
      Block& block, int64_t i,
      typename Block::template PerThread<Sums>& sums) const {
    typename Block::template PerThread<Signs> signs;
    typename Block::template PerThread<Counts> counts;
    block.ForEach([&](int thread) {
      signs[thread] = LoadSigns(block.x(), thread, Slice(thread, i));
      counts[thread] = {};
    });
    BINARYMOS_NO_UNROLL
    for (int plane = kPlanes - 1; plane >= 0; plane -= kDepth) {
      typename Block::template PerThread<Planes> planes;
      block.ForEach([&](int thread) {
        planes[thread] = LoadPlanes(block.y(), thread, Slice(thread, i), plane);
      });
      BINARYMOS_UNROLL
      for (int k = 0; k < kDepth; ++k) {
        AddPlane(block, plane - k, k, signs, planes, counts);
      }
    }
    block.ForEach([&](int thread) {
      FinishSlice(block.y(), thread, Slice(thread, i), counts[thread],
                  sums[thread]);
    });
  }

  // counts = 2 * counts + popc, the highest plane's negative.
  template <typename Block>
  BINARYMOS_DEVICE void AddPlane(
      Block& block, int plane, int k,
      typename Block::template PerThread<Signs>& signs,
      typename Block::template PerThread<Planes>& planes,
      typename Block::template PerThread<Counts>& counts) const {
    typename Block::template PerThread<PlaneFragment> b;
    block.ForEach([&](int thread) { b[thread] = planes[thread].v[k]; });
    BINARYMOS_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      typename Block::template PerThread<SignFragment> a;
      typename Block::template PerThread<CountFragment> c;
      block.ForEach([&](int thread) {
        a[thread] = signs[thread].v[tile];
        BINARYMOS_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int32_t count = counts[thread].v[tile].v[i];
          c[thread].v[i] = count + count;
        }
      });
      block.BinaryMma(c, a, b);
      block.ForEach([&](int thread) {
        if (k == 0 && plane == kPlanes - 1) {
          BINARYMOS_UNROLL
          for (int i = 0; i < 4; ++i) c[thread].v[i] = -c[thread].v[i];
        }
        counts[thread].v[tile] = c[thread];
      });
    }
  }

  BINARYMOS_DEVICE void FinishSlice(int64_t column_block, int thread,
                                    int64_t slice, const Counts& counts,
                                    Sums& sums) const {
    if (slice < 0) return;
    BINARYMOS_UNROLL
    for (int column = 0; column < 2; ++column) {
      const int64_t token = column_block * kTokens + thread % 4 * 2 + column;
      if (token >= args.tokens) continue;
      const PreparedSlice prepared = args.slices[slice * args.tokens + token];
      BINARYMOS_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        BINARYMOS_UNROLL
        for (int i = column; i < 4; i += 2) {
          sums.v[tile][i] =
              AddSliceSum(counts.v[tile].v[i], prepared, sums.v[tile][i]);
        }
      }
    }
  }

  static BINARYMOS_DEVICE void Publish(int thread, const Sums& sums,
                                       Shared& shared) {
    const int g = thread % kWarp / 4;
    const int t = thread % 4;
    BINARYMOS_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      BINARYMOS_UNROLL
      for (int i = 0; i < 4; ++i) {
        shared
            .v[thread / kWarp][2 * t + i % 2][tile * kMmaRows + i / 2 * 8 + g] =
            sums.v[tile][i];
      }
    }
  }
};

}  // namespace binarymos::cuda
