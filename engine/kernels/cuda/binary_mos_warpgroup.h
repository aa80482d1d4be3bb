// BatchBinaryMos with the instruction of a warpgroup (binary_wgmma.h), on
// compute capability 9.0; bit for bit the same.
//
//   S = sum of ±q of a slice (binary_mos_layout.h)
//   acc = fma(S, m / qmax, acc), slices ascending inside 8 groups of slices
//
// signs [out, in], planes and slices of PrepareBinaryMos  ->  y [tokens, out]
//
// Threads. A block has 8 tokens and two warpgroups. With kParts = 1 these have
// 64 outputs each and go through all slices together; with 2 they share 64
// outputs and have half of the groups each, for layers that are too small to
// fill the device otherwise. A slice is one instruction: its N columns are the
// planes of the 8 tokens, 8 columns a plane, so that a lane has all planes of
// its two tokens and puts them together without an exchange, from the highest
// down: one multiply-add per count. Warpgroups do not wait for each other in
// between: while one adds, the tensor core works for another, four of them per
// multiprocessor.
//
// Signs and planes come by cp.async, three slices ahead, and are put in the
// order of the instruction on the way, 16 bytes at a time: of each 8 tokens
// first the words 0 to 3, then 4 to 7, of signs likewise. Scales and sums of
// the slices of all inputs come first.
//
// Bytes per block: 16 in (signs of 128 outputs) and 16 in (planes, P = 16),
// from L2. 64 tokens and 4096 x 4096 on an H200: 256 blocks, 33.5 MB, 6 us at
// 5.5 TB/s. Tensor cores: 8,192 instructions of 64 clocks (measured), 2.0 us.
// Beside each a scheduler issues 64 multiply-adds (two clocks each on their
// pipe) and, on average, 90 more: 155 clocks, 4.9 us. L2 is the longest; 1.5 us
// to begin and end: predicted 7.5 us, and 18 for 4096 x 11008, whose 688 blocks
// have 2.7 times as much. 8 tokens and 4096 x 4096: 64 blocks of 96 KB at 24
// bytes per clock, 2.0 us and 1 around it.
#pragma once

#include "engine/kernels/cuda/binary_mos_output.h"
#include "engine/kernels/cuda/binary_wgmma.h"

namespace binarymos::cuda {

// kPlanes: 8, 12 or 16. REQUIRES: args.tokens > 1, CudaDeviceInfo::has_wgmma.
template <int kPlanes, int kParts>
struct WarpgroupBinaryMos {
  static constexpr bool kNeedsWgmma = true;
  static constexpr int kWarpgroups = 2;
  static constexpr int kThreads = kWarpgroups * kWarpgroup;
  static constexpr int kRows = kWarpgroups / kParts * kWgmmaRows;
  static constexpr int kTokens = kMmaColumns;

  MultiplyArgs args;

  Grid grid() const {
    return {CeilDiv(args.shape.num_tiles() * kMmaRows, kRows),
            CeilDiv(args.tokens, kTokens)};
  }
  size_t shared_bytes() const {
    return sizeof(Shared) +
           args.shape.num_slices() * kTokens * sizeof(PreparedSlice);
  }

  template <typename Block>
  BINARYMOS_DEVICE void operator()(Block& block) const {
    auto& shared = *static_cast<Shared*>(block.shared());
    typename Block::template PerThread<Source> sources;
    block.ForEach([&](int thread) {
      sources[thread] = FirstSource(block.x(), block.y(), thread);
    });
    for (int i = 0; i < kStages - 1; ++i) {
      CopyStage(block, shared.stages[i], sources);
    }
    typename Block::template PerThread<Sums> sums;
    block.ForEach([&](int thread) {
      CopySlices(block.y(), thread, shared);
      sums[thread] = {{}, FirstGroup(Part(thread)) - 1, 0};
      NextGroup(thread, sums[thread]);
    });
    const int longest = static_cast<int>(CeilDiv(NumSlices(), kParts));
    BINARYMOS_NO_UNROLL
    for (int i = 0; i < longest; ++i) {
      block.template AwaitCopies<kStages - 2>();
      block.FenceForTensorCores();
      block.Sync();  // everyone has the stage, and has left the one before
      CopyStage(block, shared.stages[(i + kStages - 1) % kStages], sources);
      AddSlice(block, i, shared, sums);
    }
    block.template AwaitCopies<0>();
    block.Sync();
    shared.sums.Finish(block, args, block.x() * kRows, block.y() * kTokens,
                       kThreads);
  }

 private:
  static constexpr int kStages = 4;
  static constexpr int kPieceWords = sizeof(Words4) / sizeof(uint32_t);
  // Pieces of 16 bytes of a slice: of its planes, which the threads of a part
  // copy, and of a warp's 16 rows of signs.
  static constexpr int kPlaneWords = kMmaColumns * kSliceWords;
  static constexpr int kPlanePieces = kPlaneWords / kPieceWords;
  static constexpr int kPartPieces = kPlanes * kPlanePieces;
  static constexpr int kPartThreads = kThreads / kParts;
  static constexpr int kTilePieces = kTileWords / kPieceWords;
  static_assert(kTilePieces == kWarp && kPartThreads % kPlanePieces == 0);

  // What a thread copies next.
  struct Source {
    const uint32_t* planes;
    const uint32_t* signs;  // null: the rows are not there
    int left;               // slices
  };
  // Rows g and g + 8 of a warp's 16, tokens 2 t and 2 t + 1, of one group.
  struct Sums {
    float v[4];
    int group;
    int left;  // slices of the group
  };
  using Counts = WgmmaCounts<kPlanes * kMmaColumns>;
  struct alignas(16) SlicePair {
    PreparedSlice v[2];
  };

  struct Stage {
    // [part][plane][words 0 to 3, 4 to 7][token]
    Words4 planes[kParts][kPartPieces];
    // [warp][words 0 to 3, 4 to 7][g][word][row g, g + 8]
    Words4 signs[kThreads / kWarp][kTilePieces];
  };
  struct Shared {
    Stage stages[kStages];
    PartialSums<kTokens, kRows> sums;

    // [num_slices][kTokens], behind the rest.
    BINARYMOS_DEVICE PreparedSlice* slices() {
      return reinterpret_cast<PreparedSlice*>(this + 1);
    }
  };
  static_assert(sizeof(Shared) % alignof(SlicePair) == 0);

  BINARYMOS_DEVICE int64_t NumSlices() const { return args.shape.num_slices(); }
  static BINARYMOS_DEVICE int Part(int thread) { return thread / kPartThreads; }
  static BINARYMOS_DEVICE int FirstGroup(int part) {
    return part * (kSumGroups / kParts);
  }
  BINARYMOS_DEVICE int FirstSlice(int part) const {
    return static_cast<int>(GroupBegin(FirstGroup(part), NumSlices()));
  }

  BINARYMOS_DEVICE Source FirstSource(int64_t row_block, int64_t column_block,
                                      int thread) const {
    const int part = Part(thread);
    const int slice = FirstSlice(part);
    const PlaneLayout layout{args.tokens, NumSlices(), kPlanes};
    const int plane_piece = thread % kPartThreads;
    const int plane_half = plane_piece / kMmaColumns % 2;
    const uint32_t* planes =
        args.planes + layout.GroupWord(column_block, slice, 0) +
        plane_piece / kPlanePieces * kPlaneWords +
        plane_piece % kMmaColumns * kSliceWords + plane_half * kPieceWords;
    // Lane 4 g + t has words 2 t and 2 t + 1 of its rows in memory.
    constexpr int kBlockTiles = kRows / kMmaRows;
    const int64_t tile = row_block * kBlockTiles + thread / kWarp % kBlockTiles;
    const int piece = thread % kWarp;
    const int lane = piece / 2 % 8 * 4 + piece / 16 * 2 + piece % 2;
    const uint32_t* signs =
        tile < args.shape.num_tiles()
            ? args.signs + (tile * NumSlices() + slice) * kTileWords +
                  lane * kPieceWords
            : nullptr;
    return {planes, signs, FirstSlice(part + 1) - slice};
  }

  // Those of tokens that are not there are zeros.
  BINARYMOS_DEVICE void CopySlices(int64_t column_block, int thread,
                                   Shared& shared) const {
    for (int64_t i = thread; i < NumSlices() * kTokens; i += kThreads) {
      const int64_t token = column_block * kTokens + i % kTokens;
      shared.slices()[i] = token < args.tokens
                               ? args.slices[i / kTokens * args.tokens + token]
                               : PreparedSlice{};
    }
  }

  template <typename Block>
  BINARYMOS_DEVICE void CopyStage(
      Block& block, Stage& stage,
      typename Block::template PerThread<Source>& sources) const {
    block.ForEach([&](int thread) {
      Source& source = sources[thread];
      if (source.left <= 0) return;
      --source.left;
      Words4* planes = stage.planes[Part(thread)] + thread % kPartThreads;
      BINARYMOS_UNROLL
      for (int i = 0; i < kPartPieces; i += kPartThreads) {
        if (thread % kPartThreads + i >= kPartPieces) break;
        block.CopyAsync(planes + i,
                        source.planes + i / kPlanePieces * kPlaneWords);
      }
      source.planes += kPlanes * kPlaneWords;
      if (source.signs == nullptr) return;
      block.CopyAsync(&stage.signs[thread / kWarp][thread % kWarp],
                      source.signs);
      source.signs += kTileWords;
    });
    block.CommitCopies();
  }

  template <typename Block>
  BINARYMOS_DEVICE void AddSlice(
      Block& block, int i, Shared& shared,
      typename Block::template PerThread<Sums>& sums) const {
    const Stage& stage = shared.stages[i % kStages];
    typename Block::template PerThread<SignFragment> a;
    typename Block::template PerThread<uint64_t> b;
    typename Block::template PerThread<Counts> counts;
    block.ForEach([&](int thread) {
      const uint32_t* words =
          stage.signs[thread / kWarp][0].v + thread % kWarp * 2;
      BINARYMOS_UNROLL
      for (int half = 0; half < 2; ++half) {
        const Words2 two = LoadPack<Words2>(words + half * (kTileWords / 2));
        a[thread].v[2 * half] = two.v[0];
        a[thread].v[2 * half + 1] = two.v[1];
      }
      b[thread] =
          WgmmaDescriptor(block.SharedAddress(stage.planes[Part(thread)]));
    });
    block.BinaryWgmma(counts, a, b);
    block.ForEach([&](int thread) {
      if (sums[thread].left <= 0) return;  // the part has ended
      FinishSlice(thread, FirstSlice(Part(thread)) + i, counts[thread], shared,
                  sums[thread]);
    });
  }

  BINARYMOS_DEVICE void FinishSlice(int thread, int slice, const Counts& counts,
                                    Shared& shared, Sums& sums) const {
    const SlicePair prepared = *reinterpret_cast<const SlicePair*>(
        shared.slices() + slice * kTokens + thread % 4 * 2);
    BINARYMOS_UNROLL
    for (int i = 0; i < 4; ++i) {
      // The highest plane's coefficient is negative.
      int32_t count = -counts.v[4 * (kPlanes - 1) + i];
      BINARYMOS_UNROLL
      for (int plane = kPlanes - 2; plane >= 0; --plane) {
        count = count + count + counts.v[4 * plane + i];
      }
      sums.v[i] = AddSliceSum(count, prepared.v[i % 2], sums.v[i]);
    }
    if (--sums.left > 0) return;
    Publish(thread, sums, shared);
    NextGroup(thread, sums);
  }

  // To the next group of the part that has slices, or to its end with none
  // left.
  BINARYMOS_DEVICE void NextGroup(int thread, Sums& sums) const {
    const int end = FirstGroup(Part(thread) + 1);
    sums = {{}, sums.group, 0};
    while (sums.left == 0 && ++sums.group < end) {
      sums.left = static_cast<int>(GroupBegin(sums.group + 1, NumSlices()) -
                                   GroupBegin(sums.group, NumSlices()));
    }
  }

  static BINARYMOS_DEVICE void Publish(int thread, const Sums& sums,
                                       Shared& shared) {
    const int row = thread / kWarp * kMmaRows % kRows + thread % kWarp / 4;
    BINARYMOS_UNROLL
    for (int i = 0; i < 4; ++i) {
      shared.sums.v[sums.group][thread % 4 * 2 + i % 2][row + i / 2 * 8] =
          sums.v[i];
    }
  }
};

}  // namespace binarymos::cuda
