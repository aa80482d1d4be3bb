// The emulated tensor core for halves, against a plain product.
#include "engine/kernels/cuda/half_mma.h"

#include <cstdint>
#include <vector>

#include "engine/core/float16.h"
#include "gtest/gtest.h"
#include "tests/engine/cuda/emulated_block.h"
#include "tests/engine/kernels/kernel_test_util.h"

namespace binarymos {
namespace {

using cuda::kHalfMmaColumns;
using cuda::kHalfMmaDepth;
using cuda::kHalfMmaRows;

// C = A B of one warp, by way of shared memory: A [16, 16]; B [16, 8], or its
// transpose [8, 16].
struct MultiplyOnce {
  static constexpr int kThreads = cuda::kWarp;
  static constexpr int kSharedHalves =
      (kHalfMmaRows + kHalfMmaColumns) * kHalfMmaDepth;

  const uint16_t* a;
  const uint16_t* b;
  bool b_is_transposed;
  float* c;

  cuda::Grid grid() const { return {}; }
  size_t shared_bytes() const { return kSharedHalves * sizeof(uint16_t); }

  template <typename Block>
  void operator()(Block& block) const {
    auto* shared_a = static_cast<uint16_t*>(block.shared());
    uint16_t* shared_b = shared_a + kHalfMmaRows * kHalfMmaDepth;
    block.ForEach([&](int lane) {
      for (int i = lane; i < kSharedHalves; i += kThreads) {
        shared_a[i] = i < kHalfMmaRows * kHalfMmaDepth
                          ? a[i]
                          : b[i - kHalfMmaRows * kHalfMmaDepth];
      }
    });
    block.Sync();
    typename Block::template PerThread<const void*> a_rows, b_rows;
    block.ForEach([&](int lane) {
      const int matrix = lane / 8;
      a_rows[lane] = shared_a + (lane % 8 + matrix % 2 * 8) * kHalfMmaDepth +
                     matrix / 2 * 8;
      // Two matrices; the others are not used.
      b_rows[lane] =
          b_is_transposed
              ? shared_b + lane % 8 * kHalfMmaDepth + matrix % 2 * 8
              : shared_b + (lane % 8 + matrix % 2 * 8) * kHalfMmaColumns;
    });
    auto a_words = block.LoadMatrices(a_rows);
    auto b_words = b_is_transposed ? block.LoadMatrices(b_rows)
                                   : block.LoadTransposed(b_rows);
    typename Block::template PerThread<cuda::HalfFragmentB> b_fragment;
    typename Block::template PerThread<cuda::FloatFragment> sums;
    block.ForEach([&](int lane) {
      b_fragment[lane] = {{b_words[lane].v[0], b_words[lane].v[1]}};
      sums[lane] = {};
    });
    block.HalfMma(sums, a_words, b_fragment);
    block.ForEach([&](int lane) {
      for (int i = 0; i < 4; ++i) {
        c[(lane / 4 + i / 2 * 8) * kHalfMmaColumns + lane % 4 * 2 + i % 2] =
            sums[lane].v[i];
      }
    });
  }
};

TEST(CudaHalfMmaTest, MultipliesMatricesFromSharedMemory) {
  const auto a = RandomHalves(kHalfMmaRows * kHalfMmaDepth, 1);
  const auto b = RandomHalves(kHalfMmaDepth * kHalfMmaColumns, 2);
  std::vector<uint16_t> b_transposed(b.size());
  for (int k = 0; k < kHalfMmaDepth; ++k) {
    for (int n = 0; n < kHalfMmaColumns; ++n) {
      b_transposed[n * kHalfMmaDepth + k] = b[k * kHalfMmaColumns + n];
    }
  }
  std::vector<float> expected;
  for (int m = 0; m < kHalfMmaRows; ++m) {
    for (int n = 0; n < kHalfMmaColumns; ++n) {
      double sum = 0;
      for (int k = 0; k < kHalfMmaDepth; ++k) {
        sum += static_cast<double>(HalfToFloat(a[m * kHalfMmaDepth + k])) *
               HalfToFloat(b[k * kHalfMmaColumns + n]);
      }
      expected.push_back(static_cast<float>(sum));
    }
  }
  for (const bool transposed : {false, true}) {
    std::vector<float> actual(expected.size());
    RunEmulated(MultiplyOnce{.a = a.data(),
                             .b = transposed ? b_transposed.data() : b.data(),
                             .b_is_transposed = transposed,
                             .c = actual.data()});
    EXPECT_TRUE(SameBits(actual, expected)) << transposed;
  }
}

}  // namespace
}  // namespace binarymos
