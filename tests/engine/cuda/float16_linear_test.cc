// The Float16 linear of the CUDA backend, run on the CPU, against sums in
// double, and its two kernels against each other, bit for bit.
#include "engine/kernels/cuda/float16_linear.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "engine/core/float16.h"
#include "engine/kernels/cuda/float16_batch.h"
#include "engine/kernels/cuda/split_halves.h"
#include "gtest/gtest.h"
#include "tests/engine/cuda/emulated_block.h"
#include "tests/engine/kernels/kernel_test_util.h"

namespace binarymos {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

struct Split {
  std::vector<uint16_t> halves;
  std::vector<float> scales;
};

Split SplitOf(const std::vector<float>& x, int64_t rows, int64_t in,
              EmulatedOrder order = EmulatedOrder::kAscending) {
  const int64_t slices = cuda::CeilDiv(in, cuda::kSliceInputs);
  Split split{std::vector<uint16_t>(slices * rows * cuda::kSplitSlice, 0xffff),
              std::vector<float>(slices * rows, kNan)};
  RunEmulated(cuda::SplitHalves{.x = x.data(),
                                .rows = rows,
                                .in = in,
                                .halves = split.halves.data(),
                                .scales = split.scales.data()},
              order);
  return split;
}

struct Layer {
  Layer(int64_t inputs, int64_t outputs)
      : in(inputs),
        out(outputs),
        weight(RandomHalves(inputs * outputs, 2)),
        bias(RandomHalves(outputs, 3)) {}

  int64_t in, out;
  std::vector<uint16_t> weight, bias;
};

// y = linear(x), or y + linear(x) where `before` is given.
template <typename Kernel>
std::vector<float> Compute(const Layer& layer, const std::vector<float>& x,
                           EmulatedOrder order,
                           const std::vector<float>* before = nullptr) {
  const auto rows = static_cast<int64_t>(x.size()) / layer.in;
  const Split split = SplitOf(x, rows, layer.in, order);
  std::vector<float> y(rows * layer.out, kNan);
  if (before != nullptr) y = *before;
  RunEmulated(Kernel{cuda::Float16Args{.halves = split.halves.data(),
                                       .scales = split.scales.data(),
                                       .weight = layer.weight.data(),
                                       .bias = layer.bias.data(),
                                       .rows = rows,
                                       .in = layer.in,
                                       .out = layer.out,
                                       .accumulate = before != nullptr,
                                       .y = y.data()}},
              order);
  return y;
}

// Each element within the error of: x as two halves, 2^-22 of the slice's
// largest; 32 additions in a slice and one per slice and group, 2^-24 each.
testing::AssertionResult IsProduct(const Layer& layer,
                                   const std::vector<float>& x,
                                   const std::vector<float>& y,
                                   const std::vector<float>* before = nullptr) {
  const auto rows = static_cast<int64_t>(x.size()) / layer.in;
  const int64_t slices = cuda::CeilDiv(layer.in, cuda::kSliceInputs);
  for (int64_t i = 0; i < rows * layer.out; ++i) {
    const int64_t row = i / layer.out;
    const int64_t output = i % layer.out;
    double sum = HalfToFloat(layer.bias[output]);
    if (before != nullptr) sum += (*before)[i];
    double magnitude = std::abs(sum);
    double rounding = 0;
    for (int64_t s = 0; s < slices; ++s) {
      double largest = 0, weights = 0;
      const int64_t end = std::min(layer.in, (s + 1) * cuda::kSliceInputs);
      for (int64_t k = s * cuda::kSliceInputs; k < end; ++k) {
        const double w = HalfToFloat(layer.weight[output * layer.in + k]);
        const double product = x[row * layer.in + k] * w;
        sum += product;
        magnitude += std::abs(product);
        weights += std::abs(w);
        largest = std::max<double>(largest, std::abs(x[row * layer.in + k]));
      }
      rounding += 0x1p-22 * largest * weights;
    }
    const double bound =
        rounding + static_cast<double>(32 + slices + 10) * kUnit * magnitude;
    if (!(std::abs(y[i] - sum) <= bound)) {
      return testing::AssertionFailure()
             << "row " << row << ", output " << output << ": " << y[i]
             << ", not " << sum << " within " << bound;
    }
  }
  return testing::AssertionSuccess();
}

TEST(CudaSplitHalvesTest, TwoHalvesAndAPowerOfTwoGiveTheInput) {
  for (const float scale : {1.0f, 1e-30f, 3e-39f, 1e30f}) {
    SCOPED_TRACE(scale);
    const int64_t in = 600, rows = 3;
    const auto x = RandomFloats(rows * in, 1, scale);
    const Split split = SplitOf(x, rows, in);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t slice = 0; slice < 3; ++slice) {
        const float power = split.scales[slice * rows + row];
        int exponent = 0;
        EXPECT_EQ(std::frexp(power, &exponent), 0.5f);
        double largest = std::numeric_limits<float>::min();
        for (int64_t k = slice * 256; k < std::min(in, slice * 256 + 256);
             ++k) {
          largest = std::max<double>(largest, std::abs(x[row * in + k]));
        }
        for (int64_t i = 0; i < 256; ++i) {
          const int64_t k = slice * 256 + i;
          const uint16_t* halves =
              split.halves.data() + (slice * rows + row) * cuda::kSplitSlice;
          const double sum = static_cast<double>(HalfToFloat(halves[i])) +
                             HalfToFloat(halves[i + 256]);
          const double expected = k < in ? x[row * in + k] : 0.0;
          EXPECT_NEAR(sum * power, expected, 0x1p-22 * largest);
        }
      }
    }
  }
}

TEST(CudaFloat16LinearTest, GivesTheProduct) {
  for (const int64_t in : {1, 7, 16, 100, 256, 520, 1100, 2304}) {
    for (const int64_t out : {1, 16, 70}) {
      for (const int64_t rows : {1, 3, 8}) {
        SCOPED_TRACE(testing::Message()
                     << in << " to " << out << ", " << rows << " rows");
        const Layer layer(in, out);
        const auto x = RandomFloats(rows * in, 1);
        EXPECT_TRUE(IsProduct(
            layer, x,
            Compute<cuda::Float16Linear>(layer, x, EmulatedOrder::kAscending)));
        const auto before = RandomFloats(rows * out, 4);
        EXPECT_TRUE(
            IsProduct(layer, x,
                      Compute<cuda::Float16Linear>(
                          layer, x, EmulatedOrder::kDescending, &before),
                      &before));
      }
    }
  }
}

TEST(CudaFloat16LinearTest, LargeAndSmallInputsLoseNothing) {
  const Layer layer(768, 20);
  auto x = RandomFloats(2 * 768, 1);
  for (int64_t k = 0; k < 256; ++k) x[k] *= 1e6f;     // no half is as large
  for (int64_t k = 256; k < 512; ++k) x[k] *= 1e-9f;  // or as small
  x[700] = 3e5f;                                      // beside others
  EXPECT_TRUE(IsProduct(
      layer, x,
      Compute<cuda::Float16Linear>(layer, x, EmulatedOrder::kAscending)));
}

TEST(CudaFloat16LinearTest, ARowDoesNotDependOnTheOthersOrTheKernel) {
  for (const int64_t in : {24, 256, 300, 1280, 2560}) {
    for (const int64_t out : {5, 130}) {
      SCOPED_TRACE(testing::Message() << in << " to " << out);
      const Layer layer(in, out);
      const int64_t rows = 41;
      const auto x = RandomFloats(rows * in, 1);
      const auto batch = Compute<cuda::BatchFloat16Linear>(
          layer, x, EmulatedOrder::kAscending);
      EXPECT_TRUE(SameBits(Compute<cuda::BatchFloat16Linear>(
                               layer, x, EmulatedOrder::kDescending),
                           batch));
      std::vector<float> few;
      for (int64_t row = 0; row < rows; row += 7) {
        const auto end = std::min(rows, row + 7) * in;
        const std::vector<float> part(x.begin() + row * in, x.begin() + end);
        const auto y = Compute<cuda::Float16Linear>(layer, part,
                                                    EmulatedOrder::kAscending);
        few.insert(few.end(), y.begin(), y.end());
      }
      EXPECT_TRUE(SameBits(few, batch));
    }
  }
}

TEST(CudaFloat16LinearTest, ARowThatIsNotFiniteGivesNanAndLeavesTheOthers) {
  const Layer layer(512, 20);
  for (const float value : {kNan, kInf, -kInf}) {
    auto x = RandomFloats(9 * 512, 1);
    const auto expected =
        Compute<cuda::BatchFloat16Linear>(layer, x, EmulatedOrder::kAscending);
    x[4 * 512 + 300] = value;
    const auto y =
        Compute<cuda::BatchFloat16Linear>(layer, x, EmulatedOrder::kAscending);
    for (int64_t i = 0; i < 9 * 20; ++i) {
      if (i / 20 == 4) {
        EXPECT_TRUE(std::isnan(y[i]));
      } else {
        EXPECT_TRUE(SameBits(y[i], expected[i]));
      }
    }
  }
}

}  // namespace
}  // namespace binarymos
