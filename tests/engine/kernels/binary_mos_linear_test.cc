#include "engine/kernels/cpu/binary_mos_linear.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "engine/core/float16.h"
#include "engine/core/thread_pool.h"
#include "engine/kernels/reference/binary_mos_linear.h"
#include "tests/engine/kernels/binary_mos_layer.h"

namespace binarymos {
namespace {

using cpu::BinaryMosPath;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

cpu::PackedBinaryMos Pack(const Layer& layer) {
  const reference::BinaryMosWeights w = layer.weights();
  auto packed = cpu::PackedBinaryMos::Pack(
      {w.sign, w.gate, w.in_scale, w.out_scale, w.bias});
  EXPECT_TRUE(packed.ok()) << packed.status();
  return *std::move(packed);
}

ConstTensorView Rows(const std::vector<float>& x, int64_t in) {
  return {x.data(), DType::kF32, {static_cast<int64_t>(x.size()) / in, in}};
}

struct Options {
  BinaryMosPath path = BinaryMosPath::kPortable;
  int bits = 14;
  int threads = 1;
  bool accumulate = false;
  float* gate_sums = nullptr;
  std::vector<float> y;  // what the output holds before; else NaN
};

std::vector<float> Apply(const cpu::PackedBinaryMos& packed,
                         const std::vector<float>& x, Options options) {
  cpu::BinaryMosCall call;
  call.rows = static_cast<int64_t>(x.size()) / packed.in_features();
  std::vector<float> y = std::move(options.y);
  y.resize(call.rows * packed.out_features(), kNan);
  call.x = x.data();
  call.y = y.data();
  call.accumulate = options.accumulate;
  call.gate_sums = options.gate_sums;
  call.activation_bits = options.bits;
  call.path = options.path;
  cpu::BinaryMosWorkspace workspace;
  EXPECT_TRUE(workspace.Reserve(call.rows, packed.in_features()).ok());
  ThreadPool pool(options.threads);
  cpu::RunBinaryMos(packed, call, workspace, pool);
  return y;
}

// All NaNs are one value here.
uint32_t Bits(float value) {
  return std::bit_cast<uint32_t>(std::isnan(value) ? kNan : value);
}

void ExpectSameBits(const std::vector<float>& actual,
                    const std::vector<float>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  size_t different = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    if (Bits(actual[i]) == Bits(expected[i])) continue;
    if (++different <= 3) {
      ADD_FAILURE() << "element " << i << ": " << actual[i] << " instead of "
                    << expected[i];
    }
  }
  EXPECT_EQ(different, 0u);
}

std::vector<float> Quantized(const Layer& layer, const std::vector<float>& x,
                             int bits = 14) {
  return reference::QuantizedBinaryMosLinear(layer.weights(),
                                             Rows(x, layer.shape.in), bits)
      .y;
}

double RelativeError(const std::vector<float>& actual,
                     const std::vector<double>& exact) {
  double error = 0;
  double norm = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    error += std::pow(actual[i] - exact[i], 2);
    norm += std::pow(exact[i], 2);
  }
  return std::sqrt(error / norm);
}

// One body for every instruction set.
class BinaryMosLinearTest : public testing::TestWithParam<BinaryMosPath> {
 protected:
  void SetUp() override {
    if (!cpu::Supports(GetParam())) {
      GTEST_SKIP() << "this CPU or build has no " << cpu::Name(GetParam());
    }
  }

  Options With(Options options = {}) const {
    options.path = GetParam();
    return options;
  }
};

INSTANTIATE_TEST_SUITE_P(Paths, BinaryMosLinearTest,
                         testing::Values(BinaryMosPath::kPortable,
                                         BinaryMosPath::kAvx2,
                                         BinaryMosPath::kAvx512,
                                         BinaryMosPath::kAmx,
                                         BinaryMosPath::kNeon),
                         [](const auto& test_info) {
                           return std::string(cpu::Name(test_info.param));
                         });

TEST_P(BinaryMosLinearTest, EveryShapeMatchesTheQuantizedReferenceBitForBit) {
  for (const int64_t in : {8, 24, 256, 264, 1000, 4096}) {
    for (const int64_t out : {1, 31, 32, 33, 100, 1376}) {
      SCOPED_TRACE(testing::Message() << in << " to " << out);
      const Layer layer({.in = in, .out = out});
      const int64_t rows = in * out > 1'000'000 ? 2 : 3;
      const std::vector<float> x = RandomInputs(rows * in);
      ExpectSameBits(Apply(Pack(layer), x, With()), Quantized(layer, x));
    }
  }
}

TEST_P(BinaryMosLinearTest, EveryNumberOfExpertsMatchesTheQuantizedReference) {
  for (const int experts : {1, 2, 4, 8, 17, 64}) {
    SCOPED_TRACE(experts);
    const Layer layer({.in = 520, .out = 70, .experts = experts});
    const std::vector<float> x = RandomInputs(5 * 520);
    ExpectSameBits(Apply(Pack(layer), x, With()), Quantized(layer, x));
  }
  const Layer without_gate({.in = 520, .out = 70, .experts = 1, .gate = false});
  const std::vector<float> x = RandomInputs(5 * 520);
  ExpectSameBits(Apply(Pack(without_gate), x, With()),
                 Quantized(without_gate, x));
}

TEST_P(BinaryMosLinearTest, EveryNumberOfBitsMatchesTheQuantizedReference) {
  const Layer layer({.in = 1000, .out = 100, .bias = true});
  const std::vector<float> x = RandomInputs(3 * 1000);
  const cpu::PackedBinaryMos packed = Pack(layer);
  for (const int bits : {8, 12, 14, 16}) {
    SCOPED_TRACE(bits);
    ExpectSameBits(Apply(packed, x, With({.bits = bits})),
                   Quantized(layer, x, bits));
  }
}

// Inputs of one magnitude reach the largest group sums, 4 * qmax: with 14 and
// 16 bits every digit of the tables is used to its end.
TEST_P(BinaryMosLinearTest, LargestSumsMatchTheQuantizedReference) {
  const Layer layer(
      {.in = 768, .out = 96, .experts = 1, .gate = false, .bias = true});
  const int64_t in = layer.shape.in;
  Layer flat = layer;
  std::vector<uint16_t> ones(in, FloatToHalf(1.0f));
  reference::BinaryMosWeights weights = flat.weights();
  weights.in_scale = {ones.data(), DType::kF16, {1, in}};
  std::vector<uint8_t> sign(96 * in / 8, 0xff);  // row 0: all +, row 1: all -
  std::fill_n(sign.begin() + in / 8, in / 8, 0);
  for (int64_t row = 2; row < 96; ++row) {
    for (int64_t j = 0; j < in / 8; ++j) {
      sign[row * in / 8 + j] = static_cast<uint8_t>(row * 37 + j * 11);
    }
  }
  weights.sign = {sign.data(), DType::kU8, {96, in / 8}};
  auto packed = cpu::PackedBinaryMos::Pack(
      {weights.sign, {}, weights.in_scale, weights.out_scale, weights.bias});
  ASSERT_TRUE(packed.ok());

  std::vector<float> x(4 * in, 3.0f);  // four rows of signs
  for (int64_t k = 0; k < in; ++k) {
    x[in + k] = -3.0f;
    x[2 * in + k] = k % 3 == 0 ? -3.0f : 3.0f;
    // Half of the slices with small sums: both kinds of table in one row.
    x[3 * in + k] = k % 512 < 256 || k % 64 == 0 ? 3.0f : -0.1f;
  }
  for (const int bits : {8, 12, 14, 16}) {
    for (const int64_t rows : {1, 4}) {
      SCOPED_TRACE(testing::Message() << bits << " bits, " << rows << " rows");
      const std::vector<float> some(x.begin(), x.begin() + rows * in);
      ExpectSameBits(
          Apply(*packed, some, With({.bits = bits})),
          reference::QuantizedBinaryMosLinear(weights, Rows(some, in), bits).y);
    }
  }
}

// Every batch size, with two of the numbers of threads.
TEST_P(BinaryMosLinearTest, RowDoesNotDependOnBatchOrThreads) {
  const Layer layer({.in = 520, .out = 200, .bias = true});
  const cpu::PackedBinaryMos packed = Pack(layer);
  const std::vector<float> all = RandomInputs(64 * 520);
  for (const int bits : {14, 16}) {
    const std::vector<float> expected = Quantized(layer, all, bits);
    for (int64_t rows = 1; rows <= 64; rows += bits == 14 ? 1 : 9) {
      for (const int64_t threads : {1 + rows % 8, 1 + (rows + rows / 8) % 8}) {
        SCOPED_TRACE(testing::Message() << bits << " bits, " << rows
                                        << " rows, " << threads << " threads");
        const std::vector<float> x(all.begin(), all.begin() + rows * 520);
        ExpectSameBits(
            Apply(packed, x,
                  With({.bits = bits, .threads = static_cast<int>(threads)})),
            {expected.begin(), expected.begin() + rows * 200});
      }
    }
  }
}

// More strips than one task takes, and a last task and strip that are smaller.
TEST_P(BinaryMosLinearTest, ManyStripsMatchTheQuantizedReference) {
  const Layer layer({.in = 776, .out = 2100});
  const cpu::PackedBinaryMos packed = Pack(layer);
  for (const int64_t rows : {1, 2, 9}) {
    const std::vector<float> x = RandomInputs(rows * 776);
    const std::vector<float> expected = Quantized(layer, x);
    for (const int threads : {1, 2, 5}) {
      SCOPED_TRACE(testing::Message() << rows << " rows, " << threads);
      ExpectSameBits(Apply(packed, x, With({.threads = threads})), expected);
    }
  }
}

TEST_P(BinaryMosLinearTest, RowDoesNotDependOnItsNeighbours) {
  const Layer layer({.in = 520, .out = 65});
  const cpu::PackedBinaryMos packed = Pack(layer);
  const std::vector<float> row = RandomInputs(520, 3);
  const std::vector<float> alone = Apply(packed, row, With());
  std::vector<float> x = RandomInputs(40 * 520);
  for (const int64_t place : {0, 1, 31, 32, 39}) {
    std::vector<float> batch = x;
    std::copy(row.begin(), row.end(), batch.begin() + place * 520);
    const std::vector<float> y = Apply(packed, batch, With({.threads = 3}));
    ExpectSameBits({y.begin() + place * 65, y.begin() + (place + 1) * 65},
                   alone);
  }
}

TEST_P(BinaryMosLinearTest, ErrorAgainstDoubleIsWithinTheBound) {
  const Layer layer({.in = 4096, .out = 96, .bias = true});
  const cpu::PackedBinaryMos packed = Pack(layer);
  std::vector<std::pair<std::string, std::vector<float>>> inputs;
  inputs.emplace_back("normal", RandomInputs(2 * 4096));
  // A few channels 20 times the rest, as in trained models.
  std::vector<float> outliers = RandomInputs(2 * 4096);
  for (size_t i = 5; i < outliers.size(); i += 700) outliers[i] *= 20;
  inputs.emplace_back("outliers", outliers);
  // Two channels of a token in the hundreds ("massive activations").
  std::vector<float> massive = RandomInputs(2 * 4096);
  massive[1415] = 700;
  massive[4096 + 2533] = -900;
  inputs.emplace_back("massive", massive);
  std::vector<float> tiny = RandomInputs(2 * 4096);
  for (float& value : tiny) value *= 1e-20f;
  inputs.emplace_back("tiny", tiny);

  for (const auto& [name, x] : inputs) {
    SCOPED_TRACE(name);
    const std::vector<double> exact =
        reference::BinaryMosLinear(layer.weights(), Rows(x, 4096)).y;
    EXPECT_LE(RelativeError(Apply(packed, x, With({.bits = 16})), exact), 3e-4);
    EXPECT_LE(RelativeError(Apply(packed, x, With({.bits = 14})), exact), 1e-3);
    EXPECT_LE(RelativeError(Apply(packed, x, With({.bits = 12})), exact), 4e-3);
    EXPECT_LE(RelativeError(Apply(packed, x, With({.bits = 8})), exact), 6e-2);
  }
}

TEST_P(BinaryMosLinearTest, EveryOutputIsWrittenAndNothingElse) {
  for (const int64_t out : {1, 15, 33, 130}) {
    for (const int64_t rows : {1, 2, 33}) {
      SCOPED_TRACE(testing::Message() << out << " outputs, " << rows);
      const Layer layer({.in = 264, .out = out});
      const cpu::PackedBinaryMos packed = Pack(layer);
      std::vector<float> padded(rows * out + 64, 12345.0f);
      const std::vector<float> x = RandomInputs(rows * 264);
      const std::vector<float> y =
          Apply(packed, x, With({.threads = 2, .y = padded}));
      ExpectSameBits({y.begin(), y.begin() + rows * out}, Quantized(layer, x));
      for (size_t i = rows * out; i < y.size(); ++i) {
        EXPECT_EQ(y[i], 12345.0f);
      }
    }
  }
}

TEST_P(BinaryMosLinearTest, NotFiniteRowLeavesItsNeighboursUntouched) {
  for (const bool gate : {true, false}) {
    const Layer layer(
        {.in = 1000, .out = 100, .experts = gate ? 4 : 1, .gate = gate});
    const cpu::PackedBinaryMos packed = Pack(layer);
    for (const float bad : {kNan, kInf, -kInf}) {
      for (const int64_t rows : {1, 3}) {
        SCOPED_TRACE(testing::Message() << bad << ", gate " << gate);
        std::vector<float> x = RandomInputs(rows * 1000);
        const int64_t bad_row = rows / 2;
        std::vector<float> expected = Quantized(layer, x);
        x[bad_row * 1000 + 999] = bad;
        std::fill_n(expected.begin() + bad_row * 100, 100, kNan);
        ExpectSameBits(Apply(packed, x, With({.threads = 2})), expected);
        ExpectSameBits(Quantized(layer, x), expected);
      }
    }
  }
}

// x is finite, x * s_in is not.
TEST_P(BinaryMosLinearTest, OverflowOfTheScaledInputGivesNan) {
  const Layer layer({.in = 256, .out = 40, .experts = 1, .gate = false});
  const reference::BinaryMosWeights weights = layer.weights();
  const std::vector<uint16_t> large(256, FloatToHalf(4.0f));
  auto packed =
      cpu::PackedBinaryMos::Pack({weights.sign,
                                  {},
                                  {large.data(), DType::kF16, {1, 256}},
                                  weights.out_scale,
                                  {}});
  ASSERT_TRUE(packed.ok());
  std::vector<float> x = RandomInputs(256);
  x[17] = 3e38f;
  for (const float y : Apply(*packed, x, With())) EXPECT_TRUE(std::isnan(y));
}

TEST_P(BinaryMosLinearTest, ExtremeMagnitudesMatchTheQuantizedReference) {
  const Layer layer({.in = 1000, .out = 40, .experts = 1, .gate = false});
  const cpu::PackedBinaryMos packed = Pack(layer);
  for (const float factor : {0.0f, 1e-45f, 1e-38f, 1e-31f, 1e-29f, 1e30f}) {
    SCOPED_TRACE(factor);
    std::vector<float> x = RandomInputs(2 * 1000);
    for (int64_t k = 0; k < 600; ++k) x[k] *= factor;      // some slices
    for (int64_t k = 1000; k < 2000; ++k) x[k] *= factor;  // or all of them
    ExpectSameBits(Apply(packed, x, With()), Quantized(layer, x));
  }
}

TEST_P(BinaryMosLinearTest, ZeroInputGivesTheBias) {
  const Layer layer({.in = 264, .out = 50, .bias = true});
  const reference::BinaryMosWeights weights = layer.weights();
  const auto bias = weights.bias.span<uint16_t>();
  const std::vector<float> y =
      Apply(Pack(layer), std::vector<float>(264), With());
  for (int64_t o = 0; o < 50; ++o) EXPECT_EQ(y[o], HalfToFloat(bias[o]));
}

TEST_P(BinaryMosLinearTest, AccumulateAddsToWhatIsThere) {
  for (const bool bias : {true, false}) {
    const Layer layer({.in = 264, .out = 100, .bias = bias});
    const std::vector<float> x = RandomInputs(5 * 264);
    const std::vector<float> before = RandomInputs(5 * 100, 99);
    std::vector<float> expected = Quantized(layer, x);
    for (size_t i = 0; i < expected.size(); ++i) {
      expected[i] = before[i] + expected[i];
    }
    ExpectSameBits(
        Apply(Pack(layer), x, With({.accumulate = true, .y = before})),
        expected);
  }
}

TEST_P(BinaryMosLinearTest, GateSumsAreAddedOverRows) {
  const Layer layer({.in = 1000, .out = 40});
  const std::vector<float> x = RandomInputs(40 * 1000);
  const std::vector<float> gates =
      reference::QuantizedBinaryMosLinear(layer.weights(), Rows(x, 1000), 14)
          .gates;
  std::vector<float> expected = {1.0f, 2.0f, 3.0f, 4.0f};
  for (size_t i = 0; i < gates.size(); ++i) expected[i % 4] += gates[i];
  std::vector<float> sums = {1.0f, 2.0f, 3.0f, 4.0f};
  Apply(Pack(layer), x, With({.threads = 4, .gate_sums = sums.data()}));
  ExpectSameBits(sums, expected);

  const std::vector<double> exact =
      reference::BinaryMosLinear(layer.weights(), Rows(x, 1000)).gates;
  for (size_t i = 0; i < gates.size(); ++i) {
    EXPECT_NEAR(gates[i], exact[i], 1e-5);
  }
}

TEST(PackedBinaryMosTest, HoldsAboutOneBitPerWeight) {
  const Layer layer({.in = 4096, .out = 1376, .bias = true});
  const size_t signs = 1376 / 8 * 4096;
  const size_t vectors = 2 * (4 * 4096 * 2 + 4 * 1376 + 1376);
  EXPECT_GE(Pack(layer).bytes(), signs + vectors);
  // Rows are padded to a multiple of 64, vectors to 64 bytes.
  EXPECT_LE(Pack(layer).bytes(), signs + vectors + 32 * 4096 / 8 + 5 * 64);
}

TEST(PackedBinaryMosTest, NeedsNoAlignmentAndNoSourceAfterwards) {
  const Layer layer({.in = 264, .out = 33, .bias = true});
  reference::BinaryMosWeights weights = layer.weights();
  std::vector<std::vector<uint8_t>> copies;
  const auto misaligned = [&](ConstTensorView view) {
    const auto* bytes = static_cast<const uint8_t*>(view.data);
    copies.emplace_back(view.bytes() + 1);
    std::copy(bytes, bytes + view.bytes(), copies.back().begin() + 1);
    view.data = copies.back().data() + 1;
    return view;
  };
  auto packed = cpu::PackedBinaryMos::Pack(
      {misaligned(weights.sign), misaligned(weights.gate),
       misaligned(weights.in_scale), misaligned(weights.out_scale),
       misaligned(weights.bias)});
  ASSERT_TRUE(packed.ok()) << packed.status();
  copies.clear();
  const std::vector<float> x = RandomInputs(264);
  ExpectSameBits(Apply(*packed, x, {}), Quantized(layer, x));
}

TEST(PackedBinaryMosTest, TooManyExpertsAreRefused) {
  const Layer layer({.in = 8, .out = 2, .experts = 65});
  const reference::BinaryMosWeights w = layer.weights();
  const auto packed = cpu::PackedBinaryMos::Pack(
      {w.sign, w.gate, w.in_scale, w.out_scale, w.bias});
  EXPECT_EQ(packed.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(BinaryMosWorkspaceTest, KeepsItsMemoryWhenItIsEnough) {
  cpu::BinaryMosWorkspace workspace;
  ASSERT_TRUE(workspace.Reserve(8, 1000).ok());
  const void* data = workspace.data();
  ASSERT_TRUE(workspace.Reserve(2, 500).ok());
  EXPECT_EQ(workspace.data(), data);
  // Batches are worked through in tiles, so a long one needs no more.
  ASSERT_TRUE(workspace.Reserve(32, 1000).ok());
  const size_t bytes = workspace.bytes();
  ASSERT_TRUE(workspace.Reserve(100'000, 1000).ok());
  EXPECT_EQ(workspace.bytes(), bytes);
}

}  // namespace
}  // namespace binarymos
