// Second half of the binary linear for one token: signs times planes on tensor
// cores (binary_mos_output.h has the end).
//
//   S = sum of ±q of a slice (binary_mos_layout.h)
//   acc = fma(S, m / qmax, acc), slices ascending inside 8 groups of slices
//
// signs [out, in], planes and slices of PrepareBinaryMos  ->  y [1, out]
//
// Threads. A block has 32 outputs; the 8 columns of a B fragment are planes.
// Warp w computes group w of the canonical order, so the eight partial sums of
// an output meet once, in shared memory, in a fixed order; who computes what
// never changes a bit. Signs go from memory to the tensor core without an
// instruction in between.
//
// Bytes per block: 4 in (signs), 2 in (planes, P = 16, from L2). 4096 x 11008
// on an H200: 5.5 MB of signs, 344 blocks that read 8 KB of planes each; memory
// alone 1.35 us. Predicted: 3 to 4 us, of which launch and two waits for memory
// are 2.
#pragma once

#include "engine/kernels/cuda/binary_mos_output.h"

namespace binarymos::cuda {

// kPlanes: 8 or 16. REQUIRES: args.tokens == 1.
template <int kPlanes>
struct MultiplyBinaryMos {
  static constexpr int kThreads = kWarp * kSumGroups;
  // 16 rows each that share a B fragment: enough blocks for every SM.
  static constexpr int kTiles = 2;
  static constexpr int kRows = kTiles * kMmaRows;
  // Slices whose signs are asked for together.
  static constexpr int kDepth = 4;
  static_assert(kPaddedRows % kRows == 0);

  MultiplyArgs args;

  Grid grid() const { return {args.shape.num_tiles() / kTiles}; }
  size_t shared_bytes() const { return sizeof(Shared); }

  template <typename Block>
  BINARYMOS_DEVICE void operator()(Block& block) const {
    auto& shared = *static_cast<Shared*>(block.shared());
    typename Block::template PerThread<Sums> sums;
    block.ForEach([&](int thread) { sums[thread] = {}; });
    const int64_t num_slices = args.shape.num_slices();
    const int64_t longest = CeilDiv(num_slices, kSumGroups);
    BINARYMOS_NO_UNROLL
    for (int64_t i = 0; i < longest; i += kDepth) {
      AddSlices(block, i, sums);
    }
    block.ForEach([&](int thread) { Publish(thread, sums[thread], shared); });
    block.Sync();
    shared.Finish(block, args, block.x() * kRows, 0, kThreads);
  }

 private:
  static constexpr int kFragments = kPlanes / kMmaColumns;
  // Of one thread: rows g and g + 8 of each tile; the quad's threads hold the
  // same.
  struct Sums {
    float v[kTiles][2];
  };
  struct Counts {
    int32_t v[kTiles][2];
  };
  struct Signs {
    SignFragment v[kDepth][kTiles];
  };
  using Shared = PartialSums<1, kRows>;

  // The warp's group has it, or it is -1.
  BINARYMOS_DEVICE int64_t Slice(int thread, int64_t i) const {
    return SliceOfGroup(thread / kWarp, i, args.shape.num_slices());
  }

  BINARYMOS_DEVICE Signs LoadSigns(int64_t row_block, int thread,
                                   int64_t first) const {
    Signs signs;
    BINARYMOS_UNROLL
    for (int d = 0; d < kDepth; ++d) {
      const int64_t slice = Slice(thread, first + d);
      BINARYMOS_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        const int64_t unit =
            (row_block * kTiles + tile) * args.shape.num_slices() + slice;
        signs.v[d][tile] =
            slice < 0 ? SignFragment{}
                      : LoadPack<SignFragment>(args.signs + unit * kTileWords +
                                               thread % kWarp * 4);
      }
    }
    return signs;
  }

  // Column g of the f-th B fragment.
  BINARYMOS_DEVICE PlaneFragment LoadPlanes(int thread, int64_t slice,
                                            int f) const {
    if (slice < 0) return {};
    const PlaneLayout layout{1, args.shape.num_slices(), kPlanes};
    const int g = thread % kWarp / 4;
    const int64_t unit = layout.UnitWord(0, slice, f * kMmaColumns + g);
    return LoadPack<PlaneFragment>(args.planes + unit + thread % 4 * 2);
  }

  template <typename Block>
  BINARYMOS_DEVICE void AddSlices(
      Block& block, int64_t first,
      typename Block::template PerThread<Sums>& sums) const {
    typename Block::template PerThread<Signs> signs;
    block.ForEach([&](int thread) {
      signs[thread] = LoadSigns(block.x(), thread, first);
    });
    BINARYMOS_UNROLL
    for (int d = 0; d < kDepth; ++d) {
      typename Block::template PerThread<Counts> counts;
      block.ForEach([&](int thread) { counts[thread] = {}; });
      BINARYMOS_UNROLL
      for (int f = 0; f < kFragments; ++f) {
        typename Block::template PerThread<PlaneFragment> b;
        block.ForEach([&](int thread) {
          b[thread] = LoadPlanes(thread, Slice(thread, first + d), f);
        });
        BINARYMOS_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
          AddFragment(block, d, tile, f, signs, b, counts);
        }
      }
      AddOverQuad(block, counts);
      block.ForEach([&](int thread) {
        FinishSlice(Slice(thread, first + d), counts[thread], sums[thread]);
      });
    }
  }

  template <typename Block>
  BINARYMOS_DEVICE void AddFragment(
      Block& block, int d, int tile, int f,
      typename Block::template PerThread<Signs>& signs,
      typename Block::template PerThread<PlaneFragment>& b,
      typename Block::template PerThread<Counts>& counts) const {
    typename Block::template PerThread<SignFragment> a;
    typename Block::template PerThread<CountFragment> c;
    block.ForEach([&](int thread) {
      a[thread] = signs[thread].v[d][tile];
      c[thread] = {};
    });
    block.BinaryMma(c, a, b);
    block.ForEach([&](int thread) {
      const int32_t* count = c[thread].v;
      const int plane = f * kMmaColumns + thread % 4 * 2;
      BINARYMOS_UNROLL
      for (int row = 0; row < 2; ++row) {
        counts[thread].v[tile][row] +=
            count[2 * row] * PlaneCoefficient(plane, kPlanes) +
            count[2 * row + 1] * PlaneCoefficient(plane + 1, kPlanes);
      }
    });
  }

  // Sums over the four threads that share rows.
  template <typename Block>
  BINARYMOS_DEVICE void AddOverQuad(
      Block& block, typename Block::template PerThread<Counts>& counts) const {
    BINARYMOS_UNROLL
    for (int mask = 1; mask <= 2; mask *= 2) {
      typename Block::template PerThread<Counts> others =
          block.ShuffleXor(counts, mask);
      block.ForEach([&](int thread) {
        BINARYMOS_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
          BINARYMOS_UNROLL
          for (int row = 0; row < 2; ++row) {
            counts[thread].v[tile][row] += others[thread].v[tile][row];
          }
        }
      });
    }
  }

  BINARYMOS_DEVICE void FinishSlice(int64_t slice, const Counts& counts,
                                    Sums& sums) const {
    if (slice < 0) return;
    const PreparedSlice prepared = args.slices[slice];
    BINARYMOS_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      BINARYMOS_UNROLL
      for (int row = 0; row < 2; ++row) {
        sums.v[tile][row] =
            AddSliceSum(counts.v[tile][row], prepared, sums.v[tile][row]);
      }
    }
  }

  static BINARYMOS_DEVICE void Publish(int thread, const Sums& sums,
                                       Shared& shared) {
    if (thread % 4 != 0) return;
    const int g = thread % kWarp / 4;
    BINARYMOS_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      BINARYMOS_UNROLL
      for (int row = 0; row < 2; ++row) {
        shared.v[thread / kWarp][0][tile * kMmaRows + row * 8 + g] =
            sums.v[tile][row];
      }
    }
  }
};

}  // namespace binarymos::cuda
