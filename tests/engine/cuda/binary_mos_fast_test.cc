// The fast binary linear, its kernels run on the CPU, against the formula in
// double.
#include "engine/kernels/cuda/binary_mos_fast.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "engine/core/float16.h"
#include "engine/kernels/cuda/binary_mos_halves.h"
#include "engine/kernels/reference/binary_mos_linear.h"
#include "gtest/gtest.h"
#include "tests/engine/cuda/binary_mos_layer.h"
#include "tests/engine/cuda/emulated_block.h"
#include "tests/engine/kernels/kernel_test_util.h"

namespace binarymos {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr double kTolerance = 5e-4;  // of the result, in the L2 norm

// Outputs of a block.
enum class Width { k64, k128, k256 };
constexpr Width kAllWidths[] = {Width::k64, Width::k128, Width::k256};

struct Options {
  Width width = Width::k64;
  bool accumulate = false;
  EmulatedOrder order = EmulatedOrder::kAscending;
  std::vector<float> y;  // what the output holds before; else NaN
};

struct Result {
  std::vector<float> y, gates, scales;
  std::vector<uint16_t> halves;
};

Result Prepare(const Layer& layer, const std::vector<float>& x,
               EmulatedOrder order = EmulatedOrder::kAscending) {
  const auto tokens = static_cast<int64_t>(x.size()) / layer.shape.in;
  const int64_t padded = cuda::CeilDiv(layer.shape.in, 256) * 256;
  Result result;
  result.gates.assign(tokens * layer.shape.experts, kNan);
  result.scales.assign(tokens, kNan);
  result.halves.assign(tokens * padded, FloatToHalf(kNan));
  RunEmulated(cuda::PrepareHalves{.input = InputOf(layer, x),
                                  .tokens = tokens,
                                  .halves = result.halves.data(),
                                  .scales = result.scales.data(),
                                  .gates = result.gates.data()},
              order);
  return result;
}

Result Apply(const Layer& layer, const std::vector<float>& x,
             const Options& options = {}) {
  Result result = Prepare(layer, x, options.order);
  const auto tokens = static_cast<int64_t>(result.scales.size());
  result.y = options.y;
  result.y.resize(tokens * layer.shape.out, kNan);
  const std::vector<uint32_t> signs = PackLayer(layer, options.order);
  const cuda::FastArgs args{
      .shape = {layer.shape.in, layer.shape.out, layer.shape.experts},
      .signs = signs.data(),
      .out_scale = layer.out_scale.data(),
      .bias = layer.shape.bias ? layer.bias.data() : nullptr,
      .tokens = tokens,
      .halves = result.halves.data(),
      .scales = result.scales.data(),
      .gates = result.gates.data(),
      .accumulate = options.accumulate,
      .y = result.y.data()};
  switch (options.width) {
    case Width::k64:
      RunEmulated(cuda::FastBinaryMos<2, 2>{args}, options.order);
      break;
    case Width::k128:
      RunEmulated(cuda::FastBinaryMos<4, 2>{args}, options.order);
      break;
    case Width::k256:
      RunEmulated(cuda::FastBinaryMos<4, 4>{args}, options.order);
      break;
  }
  return result;
}

std::vector<double> Expected(const Layer& layer, const std::vector<float>& x) {
  const auto tokens = static_cast<int64_t>(x.size()) / layer.shape.in;
  return reference::BinaryMosLinear(
             layer.weights(), {x.data(), DType::kF32, {tokens, layer.shape.in}})
      .y;
}

// Every `count` results in a row are near the reference.
void ExpectNear(const std::vector<float>& actual,
                const std::vector<double>& expected, size_t count) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t begin = 0; begin < actual.size(); begin += count) {
    double error = 0, norm = 0;
    for (size_t i = begin; i < begin + count; ++i) {
      error += std::pow(actual[i] - expected[i], 2);
      norm += std::pow(expected[i], 2);
    }
    ASSERT_LE(std::sqrt(error), kTolerance * std::sqrt(norm))
        << "from " << begin << " on";
  }
}

TEST(CudaFastBinaryMosTest, EveryInputOfASliceHasItsOwnPlace) {
  std::vector<int> places;
  for (int i = 0; i < 256; ++i) places.push_back(cuda::HalfPlace(i));
  std::sort(places.begin(), places.end());
  for (int i = 0; i < 256; ++i) EXPECT_EQ(places[i], i);
}

TEST(CudaFastBinaryMosTest, HalvesAreTheScaledInputsInTheirPlaces) {
  Layer layer({.in = 264, .out = 8, .experts = 1, .gate = false});
  std::fill(layer.in_scale.begin(), layer.in_scale.end(), FloatToHalf(1.0f));
  std::vector<float> x(2 * 264);
  // Of 9 significant bits at most: nothing is rounded.
  for (int i = 0; i < 2 * 264; ++i) x[i] = static_cast<float>(i % 264) - 100;
  const Result result = Prepare(layer, x);
  EXPECT_EQ(result.gates, (std::vector<float>{1, 1}));
  ASSERT_EQ(result.scales, (std::vector<float>{0x1p-7f, 0x1p-7f}));
  for (int token = 0; token < 2; ++token) {
    for (int i = 0; i < 512; ++i) {
      const uint16_t half =
          result.halves[token * 512 + i / 256 * 256 + cuda::HalfPlace(i % 256)];
      ASSERT_EQ(HalfToFloat(half) * result.scales[token],
                i < 264 ? x[token * 264 + i] : 0.0f)
          << "input " << i << " of token " << token;
    }
  }
}

TEST(CudaFastBinaryMosTest, EveryNumberOfTokensIsNearTheReference) {
  const Layer layer({.in = 520, .out = 70, .bias = true});
  for (const int64_t tokens : {1, 65, 127, 128, 255}) {
    SCOPED_TRACE(tokens);
    const std::vector<float> x = RandomInputs(tokens * 520);
    ExpectNear(Apply(layer, x).y, Expected(layer, x), 70);
  }
}

TEST(CudaFastBinaryMosTest, OddShapesAreNearTheReference) {
  for (const int64_t in : {8, 264, 1000, 2816}) {
    for (const int64_t out : {1, 17, 65, 300}) {
      for (const Width width : kAllWidths) {
        if (in > 264 && out > 65) continue;  // takes long
        SCOPED_TRACE(testing::Message()
                     << in << " to " << out << ", " << static_cast<int>(width));
        const Layer layer({.in = in, .out = out});
        const std::vector<float> x = RandomInputs(33 * in);
        ExpectNear(Apply(layer, x, {.width = width}).y, Expected(layer, x),
                   33 * out);
      }
    }
  }
}

TEST(CudaFastBinaryMosTest, EveryNumberOfExpertsIsNearTheReference) {
  for (const int experts : {1, 4, 9, 64}) {
    for (const Width width : kAllWidths) {
      SCOPED_TRACE(experts);
      const Layer layer({.in = 264, .out = 70, .experts = experts});
      const std::vector<float> x = RandomInputs(3 * 264);
      ExpectNear(Apply(layer, x, {.width = width}).y, Expected(layer, x), 70);
    }
  }
  const Layer layer({.in = 264, .out = 70, .experts = 1, .gate = false});
  const std::vector<float> x = RandomInputs(3 * 264);
  ExpectNear(Apply(layer, x).y, Expected(layer, x), 70);
}

TEST(CudaFastBinaryMosTest, OutliersAndMassiveActivationsAreNearTheReference) {
  const Layer layer({.in = 1000, .out = 130});
  std::vector<float> x = RandomInputs(5 * 1000);
  for (int i = 0; i < 8; ++i) x[1 * 1000 + 111 * i] *= 50;
  x[2 * 1000 + 7] = 2000;
  x[3 * 1000 + 999] = -1e7f;
  for (int i = 0; i < 1000; ++i) x[4 * 1000 + i] *= 1e-25f;
  ExpectNear(Apply(layer, x).y, Expected(layer, x), 130);
}

// Sums of one sign reach 2^29, and are exact: a slip of one place would show.
TEST(CudaFastBinaryMosTest, TheLargestSumsAreExact) {
  Layer layer({.in = 2816, .out = 64, .experts = 1, .gate = false});
  std::fill(layer.in_scale.begin(), layer.in_scale.end(), FloatToHalf(1.0f));
  std::fill(layer.out_scale.begin(), layer.out_scale.end(), FloatToHalf(1.0f));
  std::fill_n(layer.sign.begin(), 352, uint8_t{0xff});
  std::fill_n(layer.sign.begin() + 352, 352, uint8_t{0});
  for (const float value : {3.0f, 0x1.ffcp100f, 0x1p-90f}) {
    const std::vector<float> y =
        Apply(layer, std::vector<float>(2816, value)).y;
    EXPECT_EQ(y[0], 2816 * value);
    EXPECT_EQ(y[1], -2816 * value);
  }
}

TEST(CudaFastBinaryMosTest, ZerosGiveTheBias) {
  const Layer layer({.in = 264, .out = 65, .bias = true});
  const std::vector<float> y =
      Apply(layer, std::vector<float>(2 * 264, 0.0f)).y;
  for (size_t i = 0; i < y.size(); ++i) {
    EXPECT_EQ(y[i], HalfToFloat(layer.bias[i % 65]));
  }
}

TEST(CudaFastBinaryMosTest, WidthOrderPlaceAndNeighboursDoNotChangeABit) {
  const Layer layer({.in = 520, .out = 130, .bias = true});
  const std::vector<float> row = RandomInputs(520, 3);
  const std::vector<float> alone = Apply(layer, row).y;
  for (const Width width : kAllWidths) {
    for (const EmulatedOrder order :
         {EmulatedOrder::kAscending, EmulatedOrder::kDescending}) {
      std::vector<float> x = RandomInputs(140 * 520);
      for (const int64_t place : {0, 77, 139}) {
        std::copy(row.begin(), row.end(), x.begin() + place * 520);
      }
      const std::vector<float> y =
          Apply(layer, x, {.width = width, .order = order}).y;
      for (const int64_t place : {0, 77, 139}) {
        EXPECT_TRUE(SameBits(
            {y.begin() + place * 130, y.begin() + (place + 1) * 130}, alone))
            << "place " << place;
      }
    }
  }
}

TEST(CudaFastBinaryMosTest, NotFiniteTokenLeavesItsNeighboursUntouched) {
  for (const bool gate : {true, false}) {
    const Layer layer(
        {.in = 264, .out = 65, .experts = gate ? 4 : 1, .gate = gate});
    for (const float bad : {kNan, kInf, -kInf}) {
      std::vector<float> x = RandomInputs(3 * 264);
      std::vector<float> expected = Apply(layer, x).y;
      x[264 + 263] = bad;
      std::fill_n(expected.begin() + 65, 65, kNan);
      EXPECT_TRUE(SameBits(Apply(layer, x).y, expected)) << bad;
    }
  }
}

TEST(CudaFastBinaryMosTest, AccumulateAddsToWhatIsThere) {
  for (const bool bias : {true, false}) {
    const Layer layer({.in = 264, .out = 100, .bias = bias});
    const std::vector<float> x = RandomInputs(5 * 264);
    const std::vector<float> before = RandomInputs(5 * 100, 99);
    std::vector<float> expected = Apply(layer, x).y;
    for (size_t i = 0; i < expected.size(); ++i) expected[i] += before[i];
    for (const Width width : kAllWidths) {
      EXPECT_TRUE(SameBits(
          Apply(layer, x, {.width = width, .accumulate = true, .y = before}).y,
          expected));
    }
  }
}

TEST(CudaFastBinaryMosTest, NothingPastTheOutputIsWritten) {
  const Layer layer({.in = 264, .out = 33});
  for (const Width width : kAllWidths) {
    const std::vector<float> before(9 * 33 + 300, 12345.0f);
    const std::vector<float> y =
        Apply(layer, RandomInputs(9 * 264), {.width = width, .y = before}).y;
    for (size_t i = 9 * 33; i < y.size(); ++i) ASSERT_EQ(y[i], 12345.0f);
  }
}

}  // namespace
}  // namespace binarymos
