#include "engine/kernels/cpu/int8_linear.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "engine/core/thread_pool.h"
#include "engine/kernels/reference/int8_linear.h"
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
        weight(RandomHalves(in * out, 2)) {}

  std::vector<float> Run(const cpu::CpuKernels& kernels, int threads,
                         int bits = 14) const {
    ThreadPool pool(threads);
    auto packed = cpu::PackedInt8::Pack(View(weight, {out, in}), pool);
    EXPECT_TRUE(packed.ok()) << packed.status();
    cpu::Int8Workspace workspace;
    workspace.Reserve(packed->num_slices());
    std::vector<float> y(rows * out, 1.0f);
    cpu::Int8Linear(
        {kernels, pool}, *packed,
        {.x = x.data(), .rows = rows, .activation_bits = bits, .y = y.data()},
        workspace);
    return y;
  }
  std::vector<double> Reference() const {
    return reference::Int8Linear(View(x, {rows, in}), View(weight, {out, in}));
  }
  LinearCase Row(int64_t row) const {
    LinearCase alone(1, in, out);
    alone.x.assign(x.begin() + row * in, x.begin() + (row + 1) * in);
    return alone;
  }
  std::vector<float> OutputOf(const std::vector<float>& y, int64_t row) const {
    return {y.begin() + row * out, y.begin() + (row + 1) * out};
  }

  int64_t rows, in, out;
  std::vector<float> x;
  std::vector<uint16_t> weight;
};

class Int8LinearTest : public KernelPathTest {};

// Rounding x to a multiple of max |x| / qmax is off by half of that, times the
// sum of |W|, whose elements are off by half a scale; the f32 sums of S are off
// by a few units of the sum of |x W|.
TEST_P(Int8LinearTest, IsNearTheReference) {
  const LinearCase cases[] = {{1, 1, 1},    {1, 256, 16}, {3, 40, 17},
                              {4, 300, 33}, {9, 700, 5},  {34, 513, 18}};
  for (const LinearCase& c : cases) {
    for (const int bits : {8, 12, 14, 16}) {
      const auto y = c.Run(kernels(), 2, bits);
      const auto expected = c.Reference();
      const double qmax = (1 << (bits - 1)) - 1;
      for (size_t i = 0; i < y.size(); ++i) {
        const float* x = c.x.data() + static_cast<int64_t>(i) / c.out * c.in;
        const int64_t o = static_cast<int64_t>(i) % c.out;
        double largest_x = 0, largest_w = 0, sum_w = 0;
        for (int64_t k = 0; k < c.in; ++k) {
          const double w = std::abs(HalfToFloat(c.weight[o * c.in + k]));
          largest_x = std::max<double>(largest_x, std::abs(x[k]));
          largest_w = std::max(largest_w, w);
          sum_w += w;
        }
        sum_w += static_cast<double>(c.in) * largest_w / 254;
        const double bound = sum_w * largest_x * (0.5 / qmax + 20 * kUnit);
        ASSERT_NEAR(y[i], expected[i], 1.001 * bound)
            << c.rows << "x" << c.in << "x" << c.out << ", " << bits << " bits";
      }
    }
  }
}

// Where nothing has to be rounded, the result is the integer itself.
TEST_P(Int8LinearTest, IntegersThatFitAreExact) {
  LinearCase c(6, 600, 21);
  std::mt19937 random(3);
  for (int64_t i = 0; i < c.rows * c.in; ++i) {
    c.x[i] = static_cast<float>(static_cast<int>(random() % 7) - 3);
    if (i % c.in % 256 == 0) c.x[i] = 8191;  // qmax: the scale is one
  }
  for (int64_t i = 0; i < c.out * c.in; ++i) {
    const int weight = static_cast<int>(random() % 255) - 127;
    c.weight[i] = FloatToHalf(static_cast<float>(i % c.in == 5 ? 127 : weight));
  }
  const auto y = c.Run(kernels(), 1);
  const auto expected = c.Reference();
  for (size_t i = 0; i < y.size(); ++i) ASSERT_EQ(y[i], expected[i]) << i;
}

TEST_P(Int8LinearTest, ThreadsDoNotChangeABit) {
  const LinearCase c(5, 512, 700);
  const auto one = c.Run(kernels(), 1);
  for (int threads = 2; threads <= 8; ++threads) {
    EXPECT_TRUE(SameBits(c.Run(kernels(), threads), one)) << threads;
  }
}

TEST_P(Int8LinearTest, ARowDoesNotSeeItsNeighbours) {
  LinearCase c(39, 520, 35);
  c.x[6 * c.in + 3] = std::numeric_limits<float>::quiet_NaN();
  c.x[7 * c.in + 300] = -std::numeric_limits<float>::infinity();
  const auto all = c.Run(kernels(), 2);
  for (int64_t r = 0; r < c.rows; ++r) {
    const auto in_batch = c.OutputOf(all, r);
    EXPECT_TRUE(SameBits(c.Row(r).Run(kernels(), 1), in_batch)) << r;
    for (const float value : in_batch) {
      ASSERT_EQ(std::isfinite(value), r != 6 && r != 7) << r;
    }
  }
}

TEST_P(Int8LinearTest, ZerosGiveZeros) {
  LinearCase c(2, 300, 20);
  std::fill(c.x.begin(), c.x.begin() + c.in, 0.0f);
  std::fill(c.weight.begin() + c.in, c.weight.begin() + 2 * c.in, 0);
  const auto y = c.Run(kernels(), 1);
  for (int64_t o = 0; o < c.out; ++o) EXPECT_EQ(y[o], 0.0f);
  EXPECT_EQ(y[c.out + 1], 0.0f);
  EXPECT_NE(y[c.out], 0.0f);
}

INSTANTIATE_TEST_SUITE_P(Paths, Int8LinearTest, kAllPaths, PathName);

using Int8LinearPathsTest = PathsAgreeTest;

TEST_P(Int8LinearPathsTest, GivesTheBitsOfThePortablePath) {
  for (const int64_t in : {1, 255, 256, 1000, 2600}) {
    for (const int64_t rows : {1, 4, 7}) {
      const LinearCase c(rows, in, 21);
      EXPECT_TRUE(SameBits(c.Run(portable(), 1), c.Run(kernels(), 1)))
          << rows << ", " << in;
    }
  }
}

TEST(PackedInt8Test, HoldsAByteForEachWeightAndAFloatForEachOutput) {
  ThreadPool pool(1);
  const auto weight = RandomHalves(32 * 512, 1);
  const auto packed = cpu::PackedInt8::Pack(View(weight, {32, 512}), pool);
  ASSERT_TRUE(packed.ok()) << packed.status();
  EXPECT_EQ(packed->bytes(), 32u * (512 + 4));
}

TEST(PackedInt8Test, AWeightThatIsNotFiniteIsRefused) {
  ThreadPool pool(2);
  auto weight = RandomHalves(20 * 300, 1);
  for (const uint16_t bad : {0x7c00, 0xfe00}) {  // infinity, NaN
    weight[7 * 300 + 123] = bad;
    const auto packed = cpu::PackedInt8::Pack(View(weight, {20, 300}), pool);
    EXPECT_TRUE(absl::IsInvalidArgument(packed.status())) << packed.status();
  }
}

INSTANTIATE_TEST_SUITE_P(Paths, Int8LinearPathsTest, kFastPaths, PathName);

}  // namespace
}  // namespace binarymos
