// Second half of the binary linear: signs times planes on tensor cores, output
// scaling, bias.
//
//   S = sum of ±q of a slice (binary_mos_layout.h)
//   acc = fma(S, m / qmax, acc), slices ascending inside 8 groups of slices,
//   then the groups ascending;  y = acc * s_out + bias,  s_out = g · out_scale
//
// signs [out, in], planes and slices of PrepareBinaryMos  ->  y [tokens, out]
//
// Threads. A block has kTiles * 16 outputs and the columns of one B fragment: a
// token (8 columns are planes) or 8 tokens (8 columns are tokens, one MMA per
// plane). Warp w computes group w of the canonical order, so the eight partial
// sums of an output meet once, in shared memory, in a fixed order; who computes
// what never changes a bit. Signs go from memory to the tensor core without an
// instruction in between.
//
// Bytes per block: kTiles * 2 in (signs), 2 in per token (planes, P = 16, from
// L2). One token and 4096 x 11008 on an H200: 5.5 MB of signs, 344 blocks of 32
// rows that read 8 KB of planes each; memory alone 1.35 us. Predicted: 3 to 4
// us, of which launch and two waits for memory are 2.
#pragma once

#include "engine/kernels/cuda/binary_mos_layout.h"
#include "engine/kernels/cuda/canonical_math.h"

namespace binarymos::cuda {

// The arguments of every variant below.
struct MultiplyArgs {
  BinaryMosShape shape;
  const uint32_t* signs = nullptr;      // [shape.sign_words()]
  const uint16_t* out_scale = nullptr;  // [E, out] f16
  const uint16_t* bias = nullptr;       // [out] f16 or null
  int64_t tokens = 0;
  const uint32_t* planes = nullptr;       // PlaneLayout
  const PreparedSlice* slices = nullptr;  // [num_slices, tokens]
  const float* gates = nullptr;           // [tokens, E]
  bool accumulate = false;                // y += ... instead of y = ...
  float* y = nullptr;                     // [tokens, out]
};

// kPlanes: 8, 12 or 16. kOneToken: columns are planes, kPlanes is 8 or 16.
template <int kPlanes, bool kOneToken>
struct MultiplyBinaryMos {
  static constexpr int kThreads = kWarp * kSumGroups;
  // 16 rows each that share a B fragment. One token: enough blocks for every
  // SM; more: fewer reads of the planes.
  static constexpr int kTiles = kOneToken ? 2 : 4;
  static constexpr int kRows = kTiles * kMmaRows;
  static constexpr int kTokens = kOneToken ? 1 : kMmaColumns;
  // Slices whose signs are asked for together.
  static constexpr int kDepth = kOneToken ? 4 : 1;
  static_assert(kPaddedRows % kRows == 0);

  MultiplyArgs args;

  Grid grid() const {
    return {args.shape.num_tiles() / kTiles, CeilDiv(args.tokens, kTokens)};
  }
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
    block.ForEach([&](int thread) {
      for (int i = thread; i < kRows * kTokens; i += kThreads) {
        Finish(block.x() * kRows + i % kRows, block.y() * kTokens + i / kRows,
               i, shared);
      }
    });
  }

 private:
  // Of one thread: rows g and g + 8 of each tile; columns 2 t and 2 t + 1 where
  // columns are tokens, else one column (the quad's threads hold the same).
  static constexpr int kColumns = kOneToken ? 1 : 2;
  static constexpr int kFragments = kOneToken ? kPlanes / kMmaColumns : kPlanes;
  struct Sums {
    float v[kTiles][2][kColumns];
  };
  struct Counts {
    int32_t v[kTiles][2][kColumns];
  };
  struct Signs {
    SignFragment v[kDepth][kTiles];
  };
  struct Shared {
    float sums[kSumGroups][kTokens][kRows];
  };

  // The i-th slice of the thread's group, or -1 past its end.
  BINARYMOS_DEVICE int64_t Slice(int thread, int64_t i) const {
    const int64_t num_slices = args.shape.num_slices();
    const int64_t slice = GroupBegin(thread / kWarp, num_slices) + i;
    return slice < GroupBegin(thread / kWarp + 1, num_slices) ? slice : -1;
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
  BINARYMOS_DEVICE PlaneFragment LoadPlanes(int64_t column_block, int thread,
                                            int64_t slice, int f) const {
    if (slice < 0) return {};
    const PlaneLayout layout{args.tokens, args.shape.num_slices(), kPlanes};
    const int g = thread % kWarp / 4;
    const int64_t unit =
        kOneToken ? layout.UnitWord(0, slice, f * kMmaColumns + g)
                  : layout.UnitWord(column_block * kTokens + g, slice, f);
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
      BINARYMOS_UNROLL_BY_4
      for (int f = 0; f < kFragments; ++f) {
        typename Block::template PerThread<PlaneFragment> b;
        block.ForEach([&](int thread) {
          b[thread] =
              LoadPlanes(block.y(), thread, Slice(thread, first + d), f);
        });
        BINARYMOS_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
          AddFragment(block, d, tile, f, signs, b, counts);
        }
      }
      if constexpr (kOneToken) AddOverQuad(block, counts);
      block.ForEach([&](int thread) {
        AddSlice(block.y(), thread, Slice(thread, first + d), counts[thread],
                 sums[thread]);
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
      BINARYMOS_UNROLL
      for (int row = 0; row < 2; ++row) {
        if constexpr (kOneToken) {
          const int plane = f * kMmaColumns + thread % 4 * 2;
          counts[thread].v[tile][row][0] +=
              count[2 * row] * PlaneCoefficient(plane, kPlanes) +
              count[2 * row + 1] * PlaneCoefficient(plane + 1, kPlanes);
        } else {
          BINARYMOS_UNROLL
          for (int column = 0; column < 2; ++column) {
            counts[thread].v[tile][row][column] +=
                count[2 * row + column] * PlaneCoefficient(f, kPlanes);
          }
        }
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
            counts[thread].v[tile][row][0] += others[thread].v[tile][row][0];
          }
        }
      });
    }
  }

  BINARYMOS_DEVICE void AddSlice(int64_t column_block, int thread,
                                 int64_t slice, const Counts& counts,
                                 Sums& sums) const {
    if (slice < 0) return;
    BINARYMOS_UNROLL
    for (int column = 0; column < kColumns; ++column) {
      const int64_t token =
          kOneToken ? 0 : column_block * kTokens + thread % 4 * 2 + column;
      if (token >= args.tokens) continue;
      const PreparedSlice prepared = args.slices[slice * args.tokens + token];
      if (prepared.scale == 0.0f) continue;
      BINARYMOS_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        BINARYMOS_UNROLL
        for (int row = 0; row < 2; ++row) {
          const int32_t sum = 2 * counts.v[tile][row][column] - prepared.sum;
          float& total = sums.v[tile][row][column];
          total = Fma(static_cast<float>(sum), prepared.scale, total);
        }
      }
    }
  }

  static BINARYMOS_DEVICE void Publish(int thread, const Sums& sums,
                                       Shared& shared) {
    const int g = thread % kWarp / 4;
    const int t = thread % 4;
    if (kOneToken && t != 0) return;
    BINARYMOS_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      BINARYMOS_UNROLL
      for (int row = 0; row < 2; ++row) {
        BINARYMOS_UNROLL
        for (int column = 0; column < kColumns; ++column) {
          shared.sums[thread / kWarp][2 * t + column]
                     [tile * kMmaRows + row * 8 + g] =
              sums.v[tile][row][column];
        }
      }
    }
  }

  // Adds the groups and writes one output; `i` is its place in the block.
  BINARYMOS_DEVICE void Finish(int64_t row, int64_t token, int i,
                               const Shared& shared) const {
    if (row >= args.shape.out || token >= args.tokens) return;
    const int64_t num_slices = args.shape.num_slices();
    float total = 0.0f;
    BINARYMOS_UNROLL
    for (int group = 0; group < kSumGroups; ++group) {
      if (GroupBegin(group, num_slices) == GroupBegin(group + 1, num_slices)) {
        continue;
      }
      total += shared.sums[group][i / kRows][i % kRows];
    }
    float scale = 0.0f;
    for (int e = 0; e < args.shape.experts; ++e) {
      scale = Fma(args.gates[token * args.shape.experts + e],
                  ToFloat(args.out_scale[e * args.shape.out + row]), scale);
    }
    const float value = args.bias == nullptr
                            ? total * scale
                            : Fma(total, scale, ToFloat(args.bias[row]));
    float& y = args.y[token * args.shape.out + row];
    y = args.accumulate ? y + value : value;
  }
};

}  // namespace binarymos::cuda
