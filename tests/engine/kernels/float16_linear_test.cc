#include "engine/kernels/cpu/float16_linear.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "engine/core/thread_pool.h"
#include "engine/kernels/reference/float16_linear.h"
#include "gtest/gtest.h"
#include "tests/engine/kernels/kernel_test_util.h"

namespace binarymos {
namespace {

struct LinearCase {
  LinearCase(int64_t num_rows, int64_t num_in, int64_t num_out)
      : rows(num_rows),
        in(num_in),
        out(num_out),
        x(RandomFloats(rows * in, 1)),
        weight(RandomHalves(in * out, 2)),
        bias(RandomHalves(out, 3)) {}

  // y starts as ones, to see what accumulation does.
  std::vector<float> Run(const cpu::CpuKernels& kernels, int threads,
                         bool accumulate = false, bool with_bias = true) const {
    ThreadPool pool(threads);
    std::vector<float> y(rows * out, 1.0f);
    cpu::Float16Linear({kernels, pool},
                       {.weight = weight.data(),
                        .bias = with_bias ? bias.data() : nullptr,
                        .in = in,
                        .out = out,
                        .x = x.data(),
                        .rows = rows,
                        .accumulate = accumulate,
                        .y = y.data()});
    return y;
  }
  std::vector<double> Reference(bool with_bias) const {
    return reference::Float16Linear(
        View(x, {rows, in}), View(weight, {out, in}),
        with_bias ? View(bias, {out}) : ConstTensorView{});
  }
  // The sum of |x w|, which bounds every partial sum.
  double Magnitude(int64_t row, int64_t column) const {
    double sum = 0;
    for (int64_t i = 0; i < in; ++i) {
      sum += std::abs(x[row * in + i] * HalfToFloat(weight[column * in + i]));
    }
    return sum;
  }

  int64_t rows, in, out;
  std::vector<float> x;
  std::vector<uint16_t> weight, bias;
};

class Float16LinearTest : public KernelPathTest {};

// A lane has in / 16 roundings in a row and the tree four more, each at most u
// times a partial sum; bias and accumulation add one each, of numbers that are
// at most Magnitude + 5.
TEST_P(Float16LinearTest, IsNearTheReference) {
  const LinearCase cases[] = {{1, 1, 1},     {1, 16, 4},    {3, 40, 17},
                              {4, 64, 33},   {9, 250, 5},   {2, 4096, 7},
                              {6, 1000, 16}, {37, 2100, 34}};
  for (const LinearCase& c : cases) {
    for (const bool accumulate : {false, true}) {
      for (const bool bias : {false, true}) {
        const auto y = c.Run(kernels(), 1, accumulate, bias);
        const auto expected = c.Reference(bias);
        const double depth = static_cast<double>(c.in) / 16 + 5 + 2;
        for (size_t i = 0; i < y.size(); ++i) {
          const auto index = static_cast<int64_t>(i);
          const double bound = c.Magnitude(index / c.out, index % c.out) + 5;
          ASSERT_NEAR(y[i], expected[i] + (accumulate ? 1.0 : 0.0),
                      depth * kUnit * bound)
              << c.rows << "x" << c.in << "x" << c.out << " at " << i;
        }
      }
    }
  }
}

TEST_P(Float16LinearTest, ThreadsDoNotChangeABit) {
  const LinearCase c(5, 512, 700);
  const auto one = c.Run(kernels(), 1);
  for (int threads = 2; threads <= 8; ++threads) {
    EXPECT_TRUE(SameBits(c.Run(kernels(), threads), one)) << threads;
  }
}

// Rows beyond a block of them, inputs beyond a block of those.
TEST_P(Float16LinearTest, ALargeBatchGivesTheBitsOfItsRows) {
  const LinearCase c(39, 2052, 33);
  const auto all = c.Run(kernels(), 2);
  for (const int64_t r : {0, 3, 4, 31, 32, 35, 36, 38}) {
    LinearCase alone(1, c.in, c.out);
    alone.x.assign(c.x.begin() + r * c.in, c.x.begin() + (r + 1) * c.in);
    const std::vector<float> in_batch(all.begin() + r * c.out,
                                      all.begin() + (r + 1) * c.out);
    EXPECT_TRUE(SameBits(alone.Run(kernels(), 1), in_batch)) << r;
  }
}

TEST_P(Float16LinearTest, ARowDoesNotSeeItsNeighbours) {
  LinearCase c(11, 200, 37);
  c.x[6 * c.in + 3] = std::numeric_limits<float>::quiet_NaN();
  c.x[7 * c.in] = std::numeric_limits<float>::infinity();
  const auto all = c.Run(kernels(), 2);
  for (int64_t r = 0; r < c.rows; ++r) {
    LinearCase alone(1, c.in, c.out);
    alone.x.assign(c.x.begin() + r * c.in, c.x.begin() + (r + 1) * c.in);
    const std::vector<float> in_batch(all.begin() + r * c.out,
                                      all.begin() + (r + 1) * c.out);
    EXPECT_TRUE(SameBits(alone.Run(kernels(), 1), in_batch)) << r;
    for (const float value : in_batch) {
      ASSERT_EQ(std::isfinite(value), r != 6 && r != 7) << r;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Paths, Float16LinearTest, kAllPaths, PathName);

using Float16LinearPathsTest = PathsAgreeTest;

TEST_P(Float16LinearPathsTest, GivesTheBitsOfThePortablePath) {
  for (const int64_t in : {1, 15, 16, 100, 777}) {
    for (const int64_t rows : {1, 4, 7}) {
      const LinearCase c(rows, in, 21);
      EXPECT_TRUE(SameBits(c.Run(portable(), 1), c.Run(kernels(), 1)))
          << rows << ", " << in;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Paths, Float16LinearPathsTest, kFastPaths, PathName);

}  // namespace
}  // namespace binarymos
