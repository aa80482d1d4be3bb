// The emulated instruction of a warpgroup, against plain counts.
#include "engine/kernels/cuda/binary_wgmma.h"

#include <bit>
#include <cstdint>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "tests/engine/cuda/emulated_block.h"

namespace binarymos {
namespace {

using cuda::kSliceWords;
using cuda::kWgmmaRows;

constexpr int kColumns = 24;

// D = popc(A & B) of one warpgroup, rows and columns of 256 bits.
struct CountOnce {
  static constexpr int kThreads = cuda::kWarpgroup;

  const uint32_t* a;         // [kWgmmaRows, kSliceWords]
  const uint32_t* b;         // [kColumns, kSliceWords]
  int32_t* d;                // [kWgmmaRows, kColumns]
  bool fence_before = true;  // the barrier, or after it

  cuda::Grid grid() const { return {}; }
  size_t shared_bytes() const {
    return kColumns * kSliceWords * sizeof(uint32_t);
  }

  template <typename Block>
  void operator()(Block& block) const {
    auto* shared = static_cast<cuda::Words4*>(block.shared());
    block.ForEach([&](int thread) {
      const int column = thread / 2;
      const int half = thread % 2;
      if (column >= kColumns) return;
      block.CopyAsync(shared + column / 8 * 16 + half * 8 + column % 8,
                      b + column * kSliceWords + half * 4);
    });
    block.CommitCopies();
    block.template AwaitCopies<0>();
    if (fence_before) block.FenceForTensorCores();
    block.Sync();
    if (!fence_before) block.FenceForTensorCores();
    typename Block::template PerThread<cuda::SignFragment> rows;
    typename Block::template PerThread<uint64_t> columns;
    typename Block::template PerThread<cuda::WgmmaCounts<kColumns>> counts;
    block.ForEach([&](int thread) {
      for (int reg = 0; reg < 4; ++reg) {
        rows[thread].v[reg] = a[(Row(thread) + reg % 2 * 8) * kSliceWords +
                                thread % 4 + reg / 2 * 4];
      }
      columns[thread] = cuda::WgmmaDescriptor(block.SharedAddress(shared));
    });
    block.BinaryWgmma(counts, rows, columns);
    block.ForEach([&](int thread) {
      for (int i = 0; i < kColumns / 2; ++i) {
        d[(Row(thread) + i / 2 % 2 * 8) * kColumns + i / 4 * 8 +
          thread % 4 * 2 + i % 2] = counts[thread].v[i];
      }
    });
  }

  static int Row(int thread) { return thread / 32 * 16 + thread % 32 / 4; }
};

std::vector<uint32_t> RandomWords(int count) {
  std::mt19937 random(static_cast<uint32_t>(count));
  std::vector<uint32_t> words(count);
  for (uint32_t& word : words) word = random();
  return words;
}

TEST(CudaBinaryWgmmaTest, CountsCommonBitsOfRowsAndColumns) {
  const auto a = RandomWords(kWgmmaRows * kSliceWords);
  const auto b = RandomWords(kColumns * kSliceWords);
  std::vector<int32_t> expected;
  for (int m = 0; m < kWgmmaRows; ++m) {
    for (int n = 0; n < kColumns; ++n) {
      int32_t count = 0;
      for (int k = 0; k < kSliceWords; ++k) {
        count += std::popcount(a[m * kSliceWords + k] & b[n * kSliceWords + k]);
      }
      expected.push_back(count);
    }
  }
  std::vector<int32_t> actual(expected.size(), -1);
  RunEmulated(CountOnce{.a = a.data(), .b = b.data(), .d = actual.data()});
  EXPECT_EQ(actual, expected);
}

TEST(CudaBinaryWgmmaDeathTest, WhatWasNotFencedBeforeTheBarrierIsNotRead) {
  const auto a = RandomWords(kWgmmaRows * kSliceWords);
  const auto b = RandomWords(kColumns * kSliceWords);
  std::vector<int32_t> d(kWgmmaRows * kColumns);
  EXPECT_DEATH(
      RunEmulated(CountOnce{
          .a = a.data(), .b = b.data(), .d = d.data(), .fence_before = false}),
      "kSynced");
}

// Bits 0 to 13, 16 to 29 and 32 to 45 hold sixteenths.
TEST(CudaBinaryWgmmaTest, TheDescriptorSaysWhereCoreMatricesAre) {
  EXPECT_EQ(cuda::WgmmaDescriptor(0x12340), 0x0000'0010'0008'1234u);
  EXPECT_EQ(cuda::WgmmaDescriptor(0x3fff0), 0x0000'0010'0008'3fffu);
}

}  // namespace
}  // namespace binarymos
