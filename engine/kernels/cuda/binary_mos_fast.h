// Second half of the fast binary linear: signs, made ±1 in registers, times
// activations in f16 on tensor cores that add in f32.
//
//   y = (sum over k of ±half[k]) * scale * s_out + bias,  s_out = g · out_scale
//
// signs [out, in] (binary_mos_layout.h), halves, scales and gates of
// PrepareHalves  ->  y [tokens, out]
//
// Not canonical: activations are rounded to 11 bits (2.2e-4 of the result in
// the L2 norm) and the tensor core adds as it likes. A token's result still
// does not depend on its neighbours, on how many they are, or on its place:
// every tile shape adds the same steps in the same order. It does depend on
// whether this kernel computes it or an exact one.
//
// Threads. A block has kRows outputs and 128 tokens; a warp kTiles tiles of 16
// outputs and 64 tokens. A lane's sign words are those of its own rows, so that
// operand A needs no memory and no exchange: of a word shifted by the step,
// bits 15 and 31 are the signs of two halves,
//
//   a = (word << step) & 0x80008000 ^ 0xbc00bc00        1 becomes +1, 0 -1
//
// one shift and one LOP3 for two weights. Halves come by cp.async, three stages
// of 64 inputs ahead, a slice's signs with its first stage. A token has 128
// bytes of a stage; its 16-byte pieces are exchanged by token % 8, so that the
// eight rows of a matrix lie in different banks for ldmatrix.
//
// Budget of a warp with 64 x 64 outputs, per step of 16 inputs: 32 MMAs, on a
// quarter of a multiprocessor 4 clocks each at the data sheet's rate, 6 if
// `mma` reaches two thirds of it on Hopper (not measured): 128 to 200 clocks.
// Beside them 16 LOP3 and 16 shifts (32 to 64 clocks of the integer pipe), 4
// ldmatrix (64 clocks of shared memory for the four warps that run at once), 70
// issue slots: the tensor core has the longest queue. Hence 64 x 64: with 32 x
// 64 the pipe would be as busy and shared memory twice. And 256 outputs per
// block, because L2 feeds only halves: 10 bytes per clock and multiprocessor at
// that rate (128 outputs: 20; 64: 40) of about 24 that it gives. Fewer outputs
// leave no multiprocessor idle where tokens are few.
//
// 2,048 tokens and 4096 x 4096 on an H200: 69 GFLOP, 0.11 ms at two thirds of
// 989 TFLOP/s; predicted 0.16 ms at 430.
#pragma once

#include "engine/kernels/cuda/binary_mos_halves.h"
#include "engine/kernels/cuda/binary_mos_layout.h"
#include "engine/kernels/cuda/half_mma.h"

namespace binarymos::cuda {

struct FastArgs {
  BinaryMosShape shape;
  const uint32_t* signs = nullptr;      // [shape.sign_words()]
  const uint16_t* out_scale = nullptr;  // [E, out] f16
  const uint16_t* bias = nullptr;       // [out] f16 or null
  int64_t tokens = 0;
  const uint16_t* halves = nullptr;  // [tokens, num_slices, 256]
  const float* scales = nullptr;     // [tokens]
  const float* gates = nullptr;      // [tokens, E]
  bool accumulate = false;           // y += ... instead of y = ...
  float* y = nullptr;                // [tokens, out]
};

// kRowWarps warps beside each other in rows, two in tokens.
template <int kTiles, int kRowWarps>
struct FastBinaryMos {
  static constexpr int kTokenWarps = 2;
  static constexpr int kThreads = kWarp * kRowWarps * kTokenWarps;
  static constexpr int kRows = kRowWarps * kTiles * kMmaRows;
  static constexpr int kWarpTokens = 64;
  static constexpr int kTokens = kTokenWarps * kWarpTokens;
  // 255 registers for each of 256 threads.
  static constexpr int kBlocksPerSm = 256 / kThreads;

  FastArgs args;

  Grid grid() const {
    return {CeilDiv(args.shape.num_tiles() * kMmaRows, kRows),
            CeilDiv(args.tokens, kTokens)};
  }
  size_t shared_bytes() const {
    const size_t end = EndFloats(args.shape.experts) * sizeof(float);
    return end > sizeof(Shared) ? end : sizeof(Shared);
  }

  template <typename Block>
  BINARYMOS_DEVICE void operator()(Block& block) const {
    auto& shared = *static_cast<Shared*>(block.shared());
    Sums<Block> sums;
    block.ForEach([&](int thread) {
      BINARYMOS_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        BINARYMOS_UNROLL
        for (int column = 0; column < kColumns; ++column) {
          sums.v[tile][column][thread] = {};
        }
      }
    });
    typename Block::template PerThread<Signs> signs;
    const int num_stages = NumStages();
    for (int stage = 0; stage < kStages - 1; ++stage) {
      CopyStage(block, stage, shared);
    }
    BINARYMOS_NO_UNROLL
    for (int stage = 0; stage < num_stages; ++stage) {
      block.template AwaitCopies<kStages - 2>();
      block.Sync();  // everyone has the stage, and has left the one before
      CopyStage(block, stage + kStages - 1, shared);
      if (stage % kSliceStages == 0) {
        block.ForEach([&](int thread) {
          signs[thread] =
              LoadSigns(thread, shared.signs[stage / kSliceStages % 2]);
        });
      }
      BINARYMOS_UNROLL
      for (int step = 0; step < kStageSteps; ++step) {
        AddStep(block, shared.halves[stage % kStages], step, signs, sums);
      }
      block.ForEach([&](int thread) { signs[thread].Shift(kStageSteps); });
    }
    block.template AwaitCopies<0>();
    block.Sync();
    Finish(block, sums);
  }

 private:
  static constexpr int kColumns = kWarpTokens / kHalfMmaColumns;
  static constexpr int kStages = 4;
  static constexpr int kStageSteps = 4;
  static constexpr int kStageInputs = kStageSteps * kStepInputs;
  static constexpr int kSliceStages = kSliceSteps / kStageSteps;
  static constexpr int kBlockTiles = kRowWarps * kTiles;
  // Of 16 bytes, of one token in a stage.
  static constexpr int kPieces = 8;
  static constexpr int kPieceHalves = kStageInputs / kPieces;
  static_assert(kPieceHalves * sizeof(uint16_t) == 16);

  // Rows g and g + 8 of each tile.
  struct Signs {
    SignFragment v[kTiles];

    BINARYMOS_DEVICE void Shift(int bits) {
      BINARYMOS_UNROLL
      for (SignFragment& fragment : v) {
        BINARYMOS_UNROLL
        for (uint32_t& word : fragment.v) word <<= bits;
      }
    }
  };
  // Rows g and g + 8 of each tile, tokens 2 t and 2 t + 1 of each column tile.
  template <typename Block>
  struct Sums {
    typename Block::template PerThread<FloatFragment> v[kTiles][kColumns];
  };

  struct Shared {
    uint16_t halves[kStages][kTokens * kStageInputs];
    // A slice's signs come with its first stage and stay for four: two slices
    // at a time.
    uint32_t signs[2][kBlockTiles * kTileWords];
  };
  static_assert(kStages <= kSliceStages);

  // In shared memory after the last stage: gates [E, kTokens], out_scale [E,
  // kRows], scales [kTokens].
  static BINARYMOS_DEVICE constexpr size_t EndFloats(int experts) {
    return static_cast<size_t>(experts) * (kTokens + kRows) + kTokens;
  }

  static BINARYMOS_DEVICE int RowWarp(int thread) {
    return thread / kWarp / kTokenWarps;
  }
  static BINARYMOS_DEVICE int TokenWarp(int thread) {
    return thread / kWarp % kTokenWarps;
  }

  BINARYMOS_DEVICE int NumStages() const {
    return static_cast<int>(args.shape.num_slices()) * kSliceStages;
  }

  static BINARYMOS_DEVICE Signs LoadSigns(int thread, const uint32_t* shared) {
    Signs signs;
    BINARYMOS_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      signs.v[tile] = LoadPack<SignFragment>(
          shared + (RowWarp(thread) * kTiles + tile) * kTileWords +
          thread % kWarp * 4);
    }
    return signs;
  }

  // Of a token of the block, in a stage.
  static BINARYMOS_DEVICE int PieceAt(int token, int piece) {
    return token * kStageInputs + (piece ^ token % kPieces) * kPieceHalves;
  }

  // Closes a group of copies whether there is such a stage or not.
  template <typename Block>
  BINARYMOS_DEVICE void CopyStage(Block& block, int stage,
                                  Shared& shared) const {
    if (stage < NumStages()) {
      CopyHalves(block, stage, shared.halves[stage % kStages]);
      if (stage % kSliceStages == 0) {
        const int slice = stage / kSliceStages;
        CopySigns(block, slice, shared.signs[slice % 2]);
      }
    }
    block.CommitCopies();
  }

  template <typename Block>
  BINARYMOS_DEVICE void CopyHalves(Block& block, int stage,
                                   uint16_t* to) const {
    const int token_halves = NumStages() * kStageInputs;
    const int64_t first_token = block.y() * kTokens;
    const int64_t left = args.tokens - first_token;
    const int last = left < kTokens ? static_cast<int>(left) - 1 : kTokens - 1;
    const uint16_t* from =
        args.halves + first_token * token_halves + stage * kStageInputs;
    block.ForEach([&](int thread) {
      const int piece = thread % kPieces;
      BINARYMOS_UNROLL
      for (int i = 0; i < kTokens * kPieces / kThreads; ++i) {
        const int token = thread / kPieces + i * (kThreads / kPieces);
        // Past the last token, that one again: nobody reads the result.
        const int row = token < last ? token : last;
        block.CopyAsync(to + PieceAt(token, piece),
                        from + row * token_halves + piece * kPieceHalves);
      }
    });
  }

  // Tiles past the last stay as they are: nobody reads the result.
  template <typename Block>
  BINARYMOS_DEVICE void CopySigns(Block& block, int slice, uint32_t* to) const {
    const int64_t num_slices = args.shape.num_slices();
    const int64_t first = block.x() * kBlockTiles;
    block.ForEach([&](int thread) {
      BINARYMOS_UNROLL
      for (int i = thread; i < kBlockTiles * kWarp; i += kThreads) {
        const int64_t tile = first + i / kWarp;
        if (tile >= args.shape.num_tiles()) continue;
        block.CopyAsync(to + i * 4,
                        args.signs + (tile * num_slices + slice) * kTileWords +
                            i % kWarp * 4);
      }
    });
  }

  template <typename Block>
  BINARYMOS_DEVICE void AddStep(
      Block& block, const uint16_t* halves, int step,
      typename Block::template PerThread<Signs>& signs,
      Sums<Block>& sums) const {
    typename Block::template PerThread<HalfFragmentA> a[kTiles];
    block.ForEach([&](int thread) {
      BINARYMOS_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        BINARYMOS_UNROLL
        for (int i = 0; i < 4; ++i) {
          a[tile][thread].v[i] = AndXor(signs[thread].v[tile].v[i] << step,
                                        0x80008000u, 0xbc00bc00u);
        }
      }
    });
    BINARYMOS_UNROLL
    for (int column = 0; column < kColumns; column += 2) {
      // Matrices: the two pieces of the step for 8 tokens, then for 8 more.
      typename Block::template PerThread<const void*> rows;
      block.ForEach([&](int thread) {
        const int matrix = thread % kWarp / 8;
        const int token = TokenWarp(thread) * kWarpTokens +
                          (column + matrix / 2) * kHalfMmaColumns + thread % 8;
        rows[thread] = halves + PieceAt(token, 2 * step + matrix % 2);
      });
      auto words = block.LoadMatrices(rows);
      BINARYMOS_UNROLL
      for (int i = 0; i < 2; ++i) {
        typename Block::template PerThread<HalfFragmentB> b;
        block.ForEach([&](int thread) {
          b[thread] = {{words[thread].v[2 * i], words[thread].v[2 * i + 1]}};
        });
        BINARYMOS_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
          block.HalfMma(sums.v[tile][column + i], a[tile], b);
        }
      }
    }
  }

  template <typename Block>
  BINARYMOS_DEVICE void Finish(Block& block, Sums<Block>& sums) const {
    const int experts = args.shape.experts;
    auto* gates = static_cast<float*>(block.shared());
    float* out_scales = gates + experts * kTokens;
    float* scales = out_scales + experts * kRows;
    const int64_t first_token = block.y() * kTokens;
    const int64_t first_row = block.x() * kRows;
    block.ForEach([&](int thread) {
      for (int i = thread; i < experts * kTokens; i += kThreads) {
        const int64_t token = first_token + i % kTokens;
        gates[i] = token < args.tokens
                       ? args.gates[token * experts + i / kTokens]
                       : 0.0f;
      }
      for (int i = thread; i < experts * kRows; i += kThreads) {
        const int64_t row = first_row + i % kRows;
        out_scales[i] =
            row < args.shape.out
                ? ToFloat(args.out_scale[i / kRows * args.shape.out + row])
                : 0.0f;
      }
      for (int i = thread; i < kTokens; i += kThreads) {
        scales[i] =
            first_token + i < args.tokens ? args.scales[first_token + i] : 0.0f;
      }
    });
    block.Sync();
    BINARYMOS_UNROLL
    for (int column = 0; column < kColumns; ++column) {
      block.ForEach([&](int thread) {
        FloatFragment sum[kTiles];
        BINARYMOS_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
          sum[tile] = sums.v[tile][column][thread];
        }
        const int token = TokenWarp(thread) * kWarpTokens +
                          column * kHalfMmaColumns + thread % 4 * 2;
        const int row =
            RowWarp(thread) * kTiles * kMmaRows + thread % kWarp / 4;
        Write(first_row, row, first_token, token, gates, out_scales, scales,
              sum);
      });
    }
  }

  // Rows row, row + 8, ..., tokens token and token + 1 of the block.
  BINARYMOS_DEVICE void Write(int64_t first_row, int row, int64_t first_token,
                              int token, const float* gates,
                              const float* out_scales, const float* scales,
                              const FloatFragment (&sums)[kTiles]) const {
    using Floats2 = Pack<float, 2>;
    float scale[2 * kTiles][2] = {};
    BINARYMOS_NO_UNROLL
    for (int e = 0; e < args.shape.experts; ++e) {
      const auto g = LoadPack<Floats2>(gates + e * kTokens + token);
      BINARYMOS_UNROLL
      for (int r = 0; r < 2 * kTiles; ++r) {
        const float out_scale = out_scales[e * kRows + row + 8 * r];
        scale[r][0] = Fma(g.v[0], out_scale, scale[r][0]);
        scale[r][1] = Fma(g.v[1], out_scale, scale[r][1]);
      }
    }
    const auto of_token = LoadPack<Floats2>(scales + token);
    BINARYMOS_UNROLL
    for (int r = 0; r < 2 * kTiles; ++r) {
      const int64_t out = first_row + row + 8 * r;
      if (out >= args.shape.out) continue;
      const float bias = args.bias == nullptr ? 0.0f : ToFloat(args.bias[out]);
      BINARYMOS_UNROLL
      for (int i = 0; i < 2; ++i) {
        if (first_token + token + i >= args.tokens) continue;
        const float total = sums[r / 2].v[r % 2 * 2 + i] * of_token.v[i];
        const float value = Fma(total, scale[r][i], bias);
        float& y = args.y[(first_token + token + i) * args.shape.out + out];
        y = args.accumulate ? y + value : value;
      }
    }
  }
};

}  // namespace binarymos::cuda
