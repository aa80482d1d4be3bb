// Norm, activation, rotation, embedding: against the reference, between paths,
// and row by row.
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "engine/core/thread_pool.h"
#include "engine/kernels/cpu/rms_norm.h"
#include "engine/kernels/cpu/rope.h"
#include "engine/kernels/cpu/rows.h"
#include "engine/kernels/cpu/swiglu.h"
#include "engine/kernels/reference/embed.h"
#include "engine/kernels/reference/rms_norm.h"
#include "engine/kernels/reference/rope.h"
#include "engine/kernels/reference/swiglu.h"
#include "gtest/gtest.h"
#include "tests/engine/kernels/kernel_test_util.h"

namespace binarymos {
namespace {

using cpu::CpuKernels;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr int64_t kWidths[] = {1, 8, 16, 40, 250, 4096};

std::vector<float> RunRmsNorm(const CpuKernels& kernels, int threads,
                              const std::vector<float>& x,
                              const std::vector<uint16_t>& weight) {
  ThreadPool pool(threads);
  const auto hidden = static_cast<int64_t>(weight.size());
  std::vector<float> out(x.size());
  cpu::RmsNorm({kernels, pool}, x.data(), weight.data(), 1e-5f,
               static_cast<int64_t>(x.size()) / hidden, hidden, out.data());
  return out;
}

std::vector<float> RunSwiGlu(const CpuKernels& kernels, int threads,
                             const std::vector<float>& gate,
                             const std::vector<float>& up) {
  ThreadPool pool(threads);
  std::vector<float> out(gate.size());
  cpu::SwiGlu({kernels, pool}, gate.data(), up.data(),
              static_cast<int64_t>(gate.size()), out.data());
  return out;
}

// One case of RopeAndWriteKv with its memory.
struct RopeCase {
  RopeCase(int head_dim, bool f16, int tokens = 5)
      : dim(head_dim), kv_f16(f16) {
    for (int t = 0; t < tokens; ++t) {
      positions.push_back(7 + t);
      slots.push_back((t % 2 == 0 ? 2 * cpu::kKvPage : 0) + 3 + t);
    }
    q = RandomFloats(int64_t{tokens} * kHeads * dim, 1);
    k = RandomFloats(int64_t{tokens} * kKvHeads * dim, 2);
    v = RandomFloats(int64_t{tokens} * kKvHeads * dim, 3);
    for (int64_t i = 0; i < int64_t{kPositions} * (dim / 2); ++i) {
      const double angle = 0.37 * static_cast<double>(i);
      cos.push_back(static_cast<float>(std::cos(angle)));
      sin.push_back(static_cast<float>(std::sin(angle)));
    }
    const int64_t cache = int64_t{kBlocks} * kKvHeads * cpu::kKvPage * dim;
    keys16.resize(cache);
    values16.resize(cache);
    keys32.resize(cache);
    values32.resize(cache);
  }

  void Run(const CpuKernels& kernels, int threads) {
    ThreadPool pool(threads);
    cpu::RopeAndWriteKv(
        {kernels, pool},
        {.num_heads = kHeads,
         .num_kv_heads = kKvHeads,
         .head_dim = dim,
         .positions = positions,
         .kv_slots = slots,
         .cos = cos.data(),
         .sin = sin.data(),
         .q = q.data(),
         .k = k.data(),
         .v = v.data(),
         .keys = kv_f16 ? static_cast<void*>(keys16.data()) : keys32.data(),
         .values =
             kv_f16 ? static_cast<void*>(values16.data()) : values32.data(),
         .kv = kv_f16 ? cpu::KvType::kF16 : cpu::KvType::kF32});
  }

  static constexpr int kHeads = 4, kKvHeads = 2, kBlocks = 4;
  static constexpr int kPositions = 64;
  int dim;
  bool kv_f16;
  std::vector<int32_t> positions;
  std::vector<int64_t> slots;
  std::vector<float> cos, sin, q, k, v, keys32, values32;
  std::vector<uint16_t> keys16, values16;
};

class RowKernelsTest : public KernelPathTest {};

// The sum of n squares has n / 16 + 4 roundings in a row and only positive
// terms, so its relative error is at most that times u; the root halves it.
// Division, eps, root, reciprocal and two products add one u each.
TEST_P(RowKernelsTest, RmsNormIsNearTheReference) {
  for (const int64_t hidden : kWidths) {
    const auto x = RandomFloats(3 * hidden, 1, 3.0f);
    const auto weight = RandomHalves(hidden, 2);
    const auto out = RunRmsNorm(kernels(), 1, x, weight);
    const auto expected =
        reference::RmsNorm(View(x, {3, hidden}), View(weight, {hidden}), 1e-5f);
    const double depth = static_cast<double>(hidden) / 16 + 5;
    for (size_t i = 0; i < out.size(); ++i) {
      ASSERT_NEAR(out[i], expected[i],
                  std::abs(expected[i]) * (depth / 2 + 6) * kUnit)
          << hidden << ", " << i;
    }
  }
}

// exp is off by at most 2 u, 1 + exp, the quotient and the product add one
// each. Past exp's overflow the result is 0 where |gate| 2^-128 is right.
TEST_P(RowKernelsTest, SwiGluIsNearTheReference) {
  for (const int64_t n : {1, 15, 16, 1000, 5000}) {
    auto gate = RandomFloats(n, 1, 30.0f);
    const auto up = RandomFloats(n, 2);
    gate[0] = -1e4f;
    const auto out = RunSwiGlu(kernels(), 1, gate, up);
    const auto expected = reference::SwiGlu(View(gate, {n}), View(up, {n}));
    for (int64_t i = 0; i < n; ++i) {
      const double underflow = std::abs(gate[i] * up[i]) * 0x1p-126 + 0x1p-148;
      ASSERT_NEAR(out[i], expected[i],
                  std::abs(expected[i]) * 6 * kUnit + underflow)
          << gate[i];
    }
  }
}

// Two products and their sum: 2 u of |a cos| + |b sin|.
TEST_P(RowKernelsTest, RopeIsNearTheReference) {
  for (const int dim : {2, 8, 48, 128}) {
    RopeCase c(dim, false);
    const auto tokens = static_cast<int64_t>(c.positions.size());
    const Shape table{RopeCase::kPositions, dim / 2};
    const auto rotate = [&](const std::vector<float>& x, int heads) {
      return reference::Rope(View(x, {tokens, int64_t{heads} * dim}), dim,
                             c.positions, View(c.cos, table),
                             View(c.sin, table));
    };
    const auto q = rotate(c.q, RopeCase::kHeads);
    const auto k = rotate(c.k, RopeCase::kKvHeads);
    c.Run(kernels(), 1);
    const double largest = 6;  // of |a| + |b|, both normal
    for (size_t i = 0; i < q.size(); ++i) {
      ASSERT_NEAR(c.q[i], q[i], 2 * kUnit * 2 * largest);
    }
    for (size_t i = 0; i < k.size(); ++i) {
      ASSERT_NEAR(c.k[i], k[i], 2 * kUnit * 2 * largest);
    }
  }
}

TEST_P(RowKernelsTest, KeysAndValuesLandInTheirSlots) {
  for (const bool f16 : {false, true}) {
    RopeCase c(8, f16);
    c.Run(kernels(), 1);
    std::vector<int> written(c.keys32.size());
    for (size_t t = 0; t < c.slots.size(); ++t) {
      for (int h = 0; h < RopeCase::kKvHeads; ++h) {
        for (int d = 0; d < c.dim; ++d) {
          const int64_t block = c.slots[t] / cpu::kKvPage;
          const int64_t offset = c.slots[t] % cpu::kKvPage;
          const int64_t to =
              ((block * RopeCase::kKvHeads + h) * cpu::kKvPage + offset) *
                  c.dim +
              d;
          const size_t from = (t * RopeCase::kKvHeads + h) * c.dim + d;
          written[to] = 1;
          if (f16) {
            ASSERT_EQ(c.keys16[to], FloatToHalf(c.k[from]));
            ASSERT_EQ(c.values16[to], FloatToHalf(c.v[from]));
          } else {
            ASSERT_EQ(c.keys32[to], c.k[from]);
            ASSERT_EQ(c.values32[to], c.v[from]);
          }
        }
      }
    }
    for (size_t i = 0; i < written.size(); ++i) {
      if (written[i]) continue;
      ASSERT_EQ(c.keys16[i] + c.values16[i], 0);
      ASSERT_EQ(c.keys32[i] + c.values32[i], 0.0f);
    }
  }
}

TEST_P(RowKernelsTest, EmbedIsExact) {
  constexpr int64_t kVocab = 9, kHidden = 37;
  const auto table = RandomHalves(kVocab * kHidden, 1);
  const std::vector<int32_t> tokens = {8, 0, 3, 3};
  std::vector<float> out(tokens.size() * kHidden);
  ThreadPool pool(1);
  cpu::Embed({kernels(), pool}, table.data(), kVocab, kHidden, tokens,
             out.data());
  const auto expected =
      reference::Embed(View(table, {kVocab, kHidden}), tokens);
  for (size_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i], expected[i]);
}

TEST_P(RowKernelsTest, ThreadsDoNotChangeABit) {
  constexpr int64_t kRows = 300, kHidden = 512;
  const auto x = RandomFloats(kRows * kHidden, 1);
  const auto up = RandomFloats(kRows * kHidden, 2);
  const auto weight = RandomHalves(kHidden, 3);
  const auto norm = RunRmsNorm(kernels(), 1, x, weight);
  const auto silu = RunSwiGlu(kernels(), 1, x, up);
  RopeCase rope(128, true, 12);
  rope.Run(kernels(), 1);
  for (int threads = 2; threads <= 8; ++threads) {
    EXPECT_TRUE(SameBits(RunRmsNorm(kernels(), threads, x, weight), norm));
    EXPECT_TRUE(SameBits(RunSwiGlu(kernels(), threads, x, up), silu));
    RopeCase other(128, true, 12);
    other.Run(kernels(), threads);
    EXPECT_TRUE(SameBits(other.q, rope.q));
    EXPECT_EQ(other.keys16, rope.keys16);
  }
}

TEST_P(RowKernelsTest, ARowDoesNotSeeItsNeighbours) {
  constexpr int64_t kRows = 7, kHidden = 100;
  auto x = RandomFloats(kRows * kHidden, 1);
  const auto weight = RandomHalves(kHidden, 2);
  x[2 * kHidden + 5] = kNan;
  const auto all = RunRmsNorm(kernels(), 2, x, weight);
  for (int64_t r = 0; r < kRows; ++r) {
    const std::vector<float> row(x.begin() + r * kHidden,
                                 x.begin() + (r + 1) * kHidden);
    const std::vector<float> in_batch(all.begin() + r * kHidden,
                                      all.begin() + (r + 1) * kHidden);
    EXPECT_TRUE(SameBits(RunRmsNorm(kernels(), 1, row, weight), in_batch));
    for (const float value : in_batch) ASSERT_EQ(std::isnan(value), r == 2);
  }
}

INSTANTIATE_TEST_SUITE_P(Paths, RowKernelsTest, kAllPaths, PathName);

using RowKernelsPathsTest = PathsAgreeTest;

TEST_P(RowKernelsPathsTest, GivesTheBitsOfThePortablePath) {
  for (const int64_t width : kWidths) {
    auto x = RandomFloats(2 * width, 1, 40.0f);
    const auto up = RandomFloats(2 * width, 2);
    const auto weight = RandomHalves(width, 3);
    EXPECT_TRUE(SameBits(RunRmsNorm(portable(), 1, x, weight),
                         RunRmsNorm(kernels(), 1, x, weight)));
    EXPECT_TRUE(SameBits(RunSwiGlu(portable(), 1, x, up),
                         RunSwiGlu(kernels(), 1, x, up)));
  }
  for (const int dim : {2, 8, 48, 128}) {
    RopeCase a(dim, true), b(dim, true);
    a.Run(portable(), 1);
    b.Run(kernels(), 1);
    EXPECT_TRUE(SameBits(a.q, b.q));
    EXPECT_TRUE(SameBits(a.k, b.k));
    EXPECT_EQ(a.keys16, b.keys16);
    EXPECT_EQ(a.values16, b.values16);
  }
}

TEST(GatherRowsTest, CopiesTheChosenRows) {
  const auto x = RandomFloats(5 * 3, 1);
  std::vector<float> out(6);
  cpu::GatherRows(x.data(), 5, 3, std::vector<int32_t>{4, 1}, out.data());
  EXPECT_EQ(out, (std::vector<float>{x[12], x[13], x[14], x[3], x[4], x[5]}));
}

TEST(GatherRowsDeathTest, ARowOutsideIsFatal) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const std::vector<float> x(6);
  std::vector<float> out(3);
  EXPECT_DEATH(
      cpu::GatherRows(x.data(), 2, 3, std::vector<int32_t>{2}, out.data()),
      "row 2");
}

INSTANTIATE_TEST_SUITE_P(Paths, RowKernelsPathsTest, kFastPaths, PathName);

}  // namespace
}  // namespace binarymos
