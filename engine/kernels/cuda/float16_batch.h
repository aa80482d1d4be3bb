// y = x Wᵀ + bias with W in f16, for more than 8 rows: the arithmetic of
// float16_linear.h, element for element.
//
// Threads. A block has 128 outputs, 16 for each of its 8 warps, and 32 rows, 8
// for each of the 4 products that share a lane's weights. Slices follow each
// other; x of a slice is in shared memory, which the slice after next is copied
// to meanwhile. Rows of shared memory are 64 bytes longer than they must be:
// then 8 lanes that read 16 bytes at once meet 32 banks.
//
// Blocks of the same outputs follow each other, so that all but the first find
// W in L2.
//
// Bytes: 2 in out, and 4 in out / 32 from shared memory per 8 rows. lm_head of
// the 7B model (4096 x 32000) with 64 rows on an H200: 262 MB, 61 us at 4.3
// TB/s; 64 * 131 M * 2 multiply-adds in f16 at two thirds of the peak (mma
// instead of wgmma) 52 us; predicted 110 us.
#pragma once

#include "engine/kernels/cuda/float16_linear.h"

namespace binarymos::cuda {

struct BatchFloat16Linear {
  static constexpr int kThreads = 256;
  static constexpr int kWarps = kThreads / kWarp;
  static constexpr int kTiles = 4;  // of 8 rows
  static constexpr int kRows = kTiles * kHalfMmaColumns;
  static constexpr int kOutputs = kWarps * kHalfMmaRows;
  // For 12.0 the compiler takes 164 registers.
  static constexpr int kBlocksPerSm = kDeviceArch < 1200 ? 2 : 1;

  Float16Args args;

  Grid grid() const {
    return {num_row_blocks() * CeilDiv(args.out, kOutputs), 1};
  }
  size_t shared_bytes() const { return 2 * sizeof(Stage); }

  template <typename Block>
  BINARYMOS_DEVICE void operator()(Block& block) const {
    auto* stages = static_cast<Stage*>(block.shared());
    const int64_t num_slices = args.num_slices();
    const int64_t first_row = block.x() % num_row_blocks() * kRows;
    const int64_t first_output = block.x() / num_row_blocks() * kOutputs;
    const auto output_of = [&](int thread) {
      return first_output + thread / kWarp * kHalfMmaRows + thread % kWarp / 4;
    };
    typename Block::template PerThread<FloatFragment> totals[kTiles];
    typename Block::template PerThread<FloatFragment> group_sums[kTiles];
    typename Block::template PerThread<FloatFragment> sums[kTiles];
    typename Block::template PerThread<Float16Weights> weights, ahead;
    typename Block::template PerThread<SplitInputs> inputs;
    block.ForEach([&](int thread) {
      BINARYMOS_UNROLL
      for (int n = 0; n < kTiles; ++n) {
        totals[n][thread] = {};
        group_sums[n][thread] = {};
      }
    });
    const auto load_weights = [&](int thread, int64_t k) {
      return args.LoadWeights(output_of(thread), k + thread % 4 * 8);
    };
    block.ForEach([&](int thread) { ahead[thread] = load_weights(thread, 0); });
    Fetch(block, first_row, 0, stages[0]);
    for (int64_t slice = 0; slice < num_slices; ++slice) {
      if (slice + 1 < num_slices) {
        Fetch(block, first_row, slice + 1, stages[(slice + 1) % 2]);
      } else {
        block.CommitCopies();
      }
      block.template AwaitCopies<1>();
      block.Sync();
      const Stage& stage = stages[slice % 2];
      block.ForEach([&](int thread) {
        BINARYMOS_UNROLL
        for (int n = 0; n < kTiles; ++n) sums[n][thread] = {};
      });
      BINARYMOS_NO_UNROLL
      for (int k = 0; k < kSliceInputs; k += Float16Args::kChunk) {
        block.ForEach([&](int thread) {
          weights[thread] = ahead[thread];
          ahead[thread] = load_weights(
              thread, slice * kSliceInputs + k + Float16Args::kChunk);
        });
        BINARYMOS_UNROLL
        for (int n = 0; n < kTiles; ++n) {
          block.ForEach([&](int thread) {
            const int lane = thread % kWarp;
            const uint16_t* from =
                stage.halves[n * kHalfMmaColumns + lane / 4] + k + lane % 4 * 8;
            inputs[thread] = {LoadPack<Words4>(from),
                              LoadPack<Words4>(from + kSliceInputs)};
          });
          AddChunk(block, weights, inputs, sums[n]);
        }
      }
      const bool ends_group = EndsGroup(slice, num_slices);
      block.ForEach([&](int thread) {
        BINARYMOS_UNROLL
        for (int n = 0; n < kTiles; ++n) {
          BINARYMOS_UNROLL
          for (int c = 0; c < 4; ++c) {
            const int64_t row =
                first_row + n * kHalfMmaColumns + thread % 4 * 2 + c % 2;
            float& sum = group_sums[n][thread].v[c];
            if (row < args.rows) {
              sum = Fma(sums[n][thread].v[c],
                        args.scales[slice * args.rows + row], sum);
            }
            if (!ends_group) continue;
            totals[n][thread].v[c] += sum;
            sum = 0.0f;
          }
        }
      });
      block.Sync();  // everyone has read the stage
    }
    block.ForEach([&](int thread) {
      BINARYMOS_UNROLL
      for (int n = 0; n < kTiles; ++n) {
        BINARYMOS_UNROLL
        for (int c = 0; c < 4; ++c) {
          args.Store(first_row + n * kHalfMmaColumns + thread % 4 * 2 + c % 2,
                     output_of(thread) + c / 2 * 8, totals[n][thread].v[c]);
        }
      }
    });
  }

 private:
  static constexpr int kPadding = 32;  // halves
  struct Stage {
    alignas(16) uint16_t halves[kRows][kSplitSlice + kPadding];
  };

  constexpr int64_t num_row_blocks() const { return CeilDiv(args.rows, kRows); }

  // Whether the next slice is of another group. (Groups without a slice add
  // nothing.)
  static BINARYMOS_DEVICE bool EndsGroup(int64_t slice, int64_t num_slices) {
    const int64_t next = CeilDiv((slice + 1) * kSumGroups, num_slices);
    return GroupBegin(next, num_slices) == slice + 1;
  }

  // Asks for the slice of the block's rows. Past the last row nothing is
  // copied: what is computed there nobody reads.
  template <typename Block>
  BINARYMOS_DEVICE void Fetch(Block& block, int64_t first_row, int64_t slice,
                              Stage& stage) const {
    constexpr int kPieces = kSplitSlice / 8;  // of 16 bytes, of a row
    block.ForEach([&](int thread) {
      for (int i = thread; i < kRows * kPieces; i += kThreads) {
        const int64_t row = first_row + i / kPieces;
        if (row >= args.rows) continue;
        block.CopyAsync(stage.halves[i / kPieces] + i % kPieces * 8,
                        args.halves + (slice * args.rows + row) * kSplitSlice +
                            i % kPieces * 8);
      }
    });
    block.CommitCopies();
  }
};

}  // namespace binarymos::cuda
