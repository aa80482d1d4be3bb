// The binary linear of the CUDA backend, its kernels run on the CPU, against
// the canonical arithmetic of kernels/reference, bit for bit.
#include "engine/kernels/reference/binary_mos_linear.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "engine/core/float16.h"
#include "engine/kernels/cuda/binary_mos_batch.h"
#include "engine/kernels/cuda/binary_mos_fused.h"
#include "engine/kernels/cuda/binary_mos_multiply.h"
#include "engine/kernels/cuda/binary_mos_prepare.h"
#include "engine/kernels/cuda/binary_mos_warpgroup.h"
#include "tests/engine/cuda/binary_mos_layer.h"
#include "tests/engine/cuda/emulated_block.h"

namespace binarymos {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// Which kernel multiplies more than one token.
enum class Batch { k32Rows, k128Rows, kWarpgroups, kWarpgroupsInParts };
constexpr Batch kAllBatches[] = {Batch::k32Rows, Batch::k128Rows,
                                 Batch::kWarpgroups, Batch::kWarpgroupsInParts};

struct Options {
  int bits = 16;
  int parts = 1;
  Batch batch = Batch::k32Rows;
  bool accumulate = false;
  EmulatedOrder order = EmulatedOrder::kAscending;
  std::vector<float> y;  // what the output holds before; else NaN
};

struct Result {
  std::vector<float> y, gates;
};

template <int kPlanes>
void Multiply(const cuda::MultiplyArgs& args, Batch batch,
              EmulatedOrder order) {
  if constexpr (kPlanes != 12) {
    if (args.tokens == 1) {
      return RunEmulated(cuda::MultiplyBinaryMos<kPlanes>{args}, order);
    }
  }
  switch (batch) {
    case Batch::k32Rows:
      return RunEmulated(cuda::BatchBinaryMos<kPlanes, 2>{args}, order);
    case Batch::k128Rows:
      return RunEmulated(cuda::BatchBinaryMos<kPlanes, 8>{args}, order);
    case Batch::kWarpgroups:
      return RunEmulated(cuda::WarpgroupBinaryMos<kPlanes, 1>{args}, order);
    case Batch::kWarpgroupsInParts:
      return RunEmulated(cuda::WarpgroupBinaryMos<kPlanes, 2>{args}, order);
  }
}

Result Apply(const Layer& layer, const std::vector<float>& x,
             const Options& options = {}) {
  const auto tokens = static_cast<int64_t>(x.size()) / layer.shape.in;
  const cuda::BinaryMosShape shape{layer.shape.in, layer.shape.out,
                                   layer.shape.experts};
  const int num_planes =
      tokens == 1 && options.bits != 8 ? 16 : cuda::NumPlanes(options.bits);
  // Garbage wherever the kernels do not write.
  std::vector<uint32_t> planes(cuda::CeilDiv(tokens, 8) * 8 *
                                   shape.num_slices() * 16 * cuda::kSliceWords,
                               0xdeadbeefu);
  std::vector<cuda::PreparedSlice> slices(tokens * shape.num_slices(),
                                          {kNan, 12345});
  Result result;
  result.gates.assign(tokens * layer.shape.experts, kNan);
  result.y = options.y;
  result.y.resize(tokens * layer.shape.out, kNan);
  RunEmulated(
      cuda::PrepareBinaryMos{
          .input = InputOf(layer, x),
          .qmax = static_cast<float>((1 << (options.bits - 1)) - 1),
          .num_parts = options.parts,
          .layout = {tokens, shape.num_slices(), num_planes},
          .planes = planes.data(),
          .slices = slices.data(),
          .gates = result.gates.data()},
      options.order);
  const std::vector<uint32_t> signs = PackLayer(layer, options.order);
  const cuda::MultiplyArgs args{
      .shape = shape,
      .signs = signs.data(),
      .out_scale = layer.out_scale.data(),
      .bias = layer.shape.bias ? layer.bias.data() : nullptr,
      .tokens = tokens,
      .planes = planes.data(),
      .slices = slices.data(),
      .gates = result.gates.data(),
      .accumulate = options.accumulate,
      .y = result.y.data()};
  const auto multiply = num_planes == 8    ? Multiply<8>
                        : num_planes == 12 ? Multiply<12>
                                           : Multiply<16>;
  multiply(args, options.batch, options.order);
  return result;
}

cuda::BinaryMosShape ShapeOf(const Layer& layer) {
  return {layer.shape.in, layer.shape.out, layer.shape.experts};
}

// Layers that share one token, each with its own options; in one launch.
std::vector<Result> ApplyFused(const std::vector<const Layer*>& layers,
                               const std::vector<float>& x, int clusters,
                               const std::vector<Options>& options) {
  cuda::FusedArgs args{
      .x = x.data(),
      .in = static_cast<int64_t>(x.size()),
      .qmax = static_cast<float>((1 << (options[0].bits - 1)) - 1),
      .num_tasks = static_cast<int>(layers.size())};
  std::vector<Result> results(layers.size());
  std::vector<std::vector<uint32_t>> signs;
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& layer = *layers[i];
    results[i].y = options[i].y;
    if (results[i].y.empty()) results[i].y.resize(layer.shape.out, kNan);
    results[i].gates.assign(layer.shape.experts, 0.0f);
    signs.push_back(PackLayer(layer, options[0].order));
    args.tasks[i] = {
        .out = layer.shape.out,
        .experts = layer.shape.experts,
        .accumulate = options[i].accumulate,
        .signs = signs.back().data(),
        .gate = layer.shape.gate ? layer.gate.data() : nullptr,
        .in_scale = layer.in_scale.data(),
        .out_scale = layer.out_scale.data(),
        .bias = layer.shape.bias ? layer.bias.data() : nullptr,
        .y = results[i].y.data(),
        .gate_sums = layer.shape.gate ? results[i].gates.data() : nullptr};
  }
  cuda::PlanClusters(clusters, args);
  if (options[0].bits == 8) {
    RunEmulated(cuda::FusedBinaryMos<8>{args}, options[0].order);
  } else {
    RunEmulated(cuda::FusedBinaryMos<16>{args}, options[0].order);
  }
  return results;
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

reference::QuantizedBinaryMosResult Expected(const Layer& layer,
                                             const std::vector<float>& x,
                                             int bits = 16) {
  const auto tokens = static_cast<int64_t>(x.size()) / layer.shape.in;
  return reference::QuantizedBinaryMosLinear(
      layer.weights(), {x.data(), DType::kF32, {tokens, layer.shape.in}}, bits);
}

void ExpectReference(const Layer& layer, const std::vector<float>& x,
                     Options options = {},
                     std::span<const Batch> batches = kAllBatches) {
  const auto expected = Expected(layer, x, options.bits);
  for (const Batch batch : batches) {
    SCOPED_TRACE(static_cast<int>(batch));
    options.batch = batch;
    const Result result = Apply(layer, x, options);
    ExpectSameBits(result.gates, expected.gates);
    ExpectSameBits(result.y, expected.y);
  }
  if (static_cast<int64_t>(x.size()) != layer.shape.in ||
      !cuda::CanFuse(ShapeOf(layer))) {
    return;
  }
  // One token: the launch of clusters gives the same.
  const Result fused = ApplyFused({&layer}, x, 2, {options})[0];
  if (layer.shape.gate) ExpectSameBits(fused.gates, expected.gates);
  ExpectSameBits(fused.y, expected.y);
}

TEST(CudaBinaryMosLinearTest, EveryNumberOfTokensMatchesTheReference) {
  const Layer layer({.in = 520, .out = 70, .bias = true});
  for (const int64_t tokens : {1, 2, 3, 7, 8, 9, 12, 13, 16, 17, 64, 255}) {
    SCOPED_TRACE(tokens);
    ExpectReference(layer, RandomInputs(tokens * 520));
  }
}

TEST(CudaBinaryMosLinearTest, AWholePromptMatchesTheReference) {
  // The other two are as these, but for how rows are shared.
  constexpr Batch kBatches[] = {Batch::k32Rows, Batch::kWarpgroupsInParts};
  ExpectReference(Layer({.in = 256, .out = 3}), RandomInputs(4096 * 256), {},
                  kBatches);
}

TEST(CudaBinaryMosLinearTest, OddShapesMatchTheReference) {
  for (const int64_t in : {8, 24, 256, 264, 1000, 2056}) {
    for (const int64_t out : {1, 15, 16, 17, 63, 65, 130}) {
      for (const int64_t tokens : {1, 3}) {
        SCOPED_TRACE(testing::Message()
                     << in << " to " << out << ", " << tokens << " tokens");
        ExpectReference(Layer({.in = in, .out = out}),
                        RandomInputs(tokens * in));
      }
    }
  }
}

// Inputs and hidden sizes of LLaMA 7B and 13B; a few rows of the output.
TEST(CudaBinaryMosLinearTest, TheDepthsOfLlamaMatchTheReference) {
  for (const int64_t in : {4096, 11008, 5120, 13824}) {
    for (const int64_t tokens : {1, 2}) {
      SCOPED_TRACE(testing::Message() << in << ", " << tokens << " tokens");
      ExpectReference(Layer({.in = in, .out = 33}), RandomInputs(tokens * in));
    }
  }
}

TEST(CudaBinaryMosLinearTest, EveryNumberOfBitsMatchesTheReference) {
  const Layer layer({.in = 1000, .out = 100, .bias = true});
  for (const int bits : {8, 12, 14, 16}) {
    for (const int64_t tokens : {1, 5}) {
      SCOPED_TRACE(testing::Message() << bits << " bits, " << tokens);
      ExpectReference(layer, RandomInputs(tokens * 1000), {.bits = bits});
    }
  }
}

TEST(CudaBinaryMosLinearTest, EveryNumberOfExpertsMatchesTheReference) {
  for (const int experts : {1, 2, 4, 8, 9, 17, 64}) {
    SCOPED_TRACE(experts);
    ExpectReference(Layer({.in = 520, .out = 70, .experts = experts}),
                    RandomInputs(3 * 520));
  }
  ExpectReference(Layer({.in = 520, .out = 70, .experts = 1, .gate = false}),
                  RandomInputs(3 * 520));
}

TEST(CudaBinaryMosLinearTest, PartsAndOrdersDoNotMatter) {
  const Layer layer({.in = 2600, .out = 70, .bias = true});
  for (const int64_t tokens : {1, 3, 11}) {
    for (const int parts : {1, 2, 3, 11}) {
      for (const EmulatedOrder order :
           {EmulatedOrder::kAscending, EmulatedOrder::kDescending}) {
        SCOPED_TRACE(testing::Message()
                     << tokens << " tokens, " << parts << " parts, order "
                     << static_cast<int>(order));
        ExpectReference(layer, RandomInputs(tokens * 2600),
                        {.parts = parts, .order = order});
      }
    }
  }
}

TEST(CudaBinaryMosLinearTest, ATokenDoesNotDependOnItsNeighbours) {
  const Layer layer({.in = 520, .out = 65});
  const std::vector<float> row = RandomInputs(520, 3);
  const std::vector<float> alone = Apply(layer, row).y;
  for (const int64_t tokens : {2, 8, 13, 40}) {
    for (const int64_t place : {int64_t{0}, tokens / 2, tokens - 1}) {
      SCOPED_TRACE(testing::Message() << place << " of " << tokens);
      std::vector<float> x = RandomInputs(tokens * 520);
      std::copy(row.begin(), row.end(), x.begin() + place * 520);
      for (const Batch batch : kAllBatches) {
        const std::vector<float> y = Apply(layer, x, {.batch = batch}).y;
        ExpectSameBits({y.begin() + place * 65, y.begin() + (place + 1) * 65},
                       alone);
      }
    }
  }
}

// Inputs of one magnitude reach the largest sums, 256 * qmax.
TEST(CudaBinaryMosLinearTest, LargestSumsMatchTheReference) {
  Layer layer({.in = 768, .out = 96, .experts = 1, .gate = false});
  std::fill(layer.in_scale.begin(), layer.in_scale.end(), FloatToHalf(1.0f));
  std::fill_n(layer.sign.begin(), 96, uint8_t{0xff});    // a row of +
  std::fill_n(layer.sign.begin() + 96, 96, uint8_t{0});  // and one of -
  for (const int64_t tokens : {1, 2}) {
    std::vector<float> x(tokens * 768, 3.0f);
    for (int64_t k = 768; k < tokens * 768; ++k) x[k] = -3.0f;
    for (const int bits : {8, 12, 14, 16}) {
      ExpectReference(layer, x, {.bits = bits});
    }
  }
}

TEST(CudaBinaryMosLinearTest, OutliersMatchTheReference) {
  const Layer layer({.in = 1000, .out = 40});
  for (const float factor : {0.0f, 1e-45f, 1e-38f, 1e-31f, 1e-29f, 1e30f}) {
    for (const int64_t tokens : {1, 2}) {
      SCOPED_TRACE(factor);
      std::vector<float> x = RandomInputs(tokens * 1000);
      for (int64_t k = 0; k < 600; ++k) x[k] *= factor;
      x[700] = 2000.0f;
      ExpectReference(layer, x);
    }
  }
}

TEST(CudaBinaryMosLinearTest, NotFiniteTokenLeavesItsNeighboursUntouched) {
  for (const bool gate : {true, false}) {
    const Layer layer(
        {.in = 1000, .out = 100, .experts = gate ? 4 : 1, .gate = gate});
    for (const float bad : {kNan, kInf, -kInf}) {
      for (const int64_t tokens : {1, 3, 9}) {
        SCOPED_TRACE(testing::Message() << bad << ", gate " << gate);
        std::vector<float> x = RandomInputs(tokens * 1000);
        std::vector<float> expected = Expected(layer, x).y;
        const int64_t bad_token = tokens / 2;
        x[bad_token * 1000 + 999] = bad;
        std::fill_n(expected.begin() + bad_token * 100, 100, kNan);
        for (const Batch batch : kAllBatches) {
          ExpectSameBits(Apply(layer, x, {.batch = batch}).y, expected);
        }
      }
    }
  }
}

TEST(CudaBinaryMosLinearTest, AccumulateAddsToWhatIsThere) {
  for (const bool bias : {true, false}) {
    for (const int64_t tokens : {1, 5}) {
      const Layer layer({.in = 264, .out = 100, .bias = bias});
      const std::vector<float> x = RandomInputs(tokens * 264);
      const std::vector<float> before = RandomInputs(tokens * 100, 99);
      std::vector<float> expected = Expected(layer, x).y;
      for (size_t i = 0; i < expected.size(); ++i) {
        expected[i] = before[i] + expected[i];
      }
      for (const Batch batch : kAllBatches) {
        ExpectSameBits(
            Apply(layer, x, {.batch = batch, .accumulate = true, .y = before})
                .y,
            expected);
      }
    }
  }
}

TEST(CudaBinaryMosLinearTest, NothingPastTheOutputIsWritten) {
  const Layer layer({.in = 264, .out = 33});
  for (const int64_t tokens : {1, 9}) {
    std::vector<float> before(tokens * 33 + 64, 12345.0f);
    for (const Batch batch : kAllBatches) {
      const std::vector<float> y = Apply(layer, RandomInputs(tokens * 264),
                                         {.batch = batch, .y = before})
                                       .y;
      for (size_t i = tokens * 33; i < y.size(); ++i) EXPECT_EQ(y[i], 12345.0f);
    }
  }
}

// All rows of a cluster, and those of several; more signs than are copied
// early.
TEST(CudaFusedBinaryMosTest, TheShapesOfLlamaMatchTwoLaunches) {
  const struct {
    int64_t in, out;
    int clusters;
  } cases[] = {{4096, 1024, 4}, {4096, 700, 1},  {11008, 256, 1},
               {5120, 320, 1},  {5120, 2048, 1}, {13824, 320, 1}};
  for (const auto& each : cases) {
    SCOPED_TRACE(testing::Message() << each.in << " to " << each.out);
    const Layer layer({.in = each.in, .out = each.out});
    const std::vector<float> x = RandomInputs(each.in);
    ExpectSameBits(ApplyFused({&layer}, x, each.clusters, {{}})[0].y,
                   Apply(layer, x).y);
  }
}

TEST(CudaFusedBinaryMosTest, LayersOfOneLaunchDoNotMixUp) {
  const Layer q({.in = 1000, .out = 200, .bias = true});
  const Layer k({.in = 1000, .out = 70, .experts = 2});
  const Layer v({.in = 1000, .out = 33, .experts = 1, .gate = false});
  const std::vector<float> x = RandomInputs(1000);
  for (const int clusters : {1, 3, 4, 7, 16, 100}) {
    for (const EmulatedOrder order :
         {EmulatedOrder::kAscending, EmulatedOrder::kDescending}) {
      SCOPED_TRACE(clusters);
      const Options options{.order = order};
      const std::vector<Result> results =
          ApplyFused({&q, &k, &v}, x, clusters, {options, options, options});
      ExpectSameBits(results[0].y, Expected(q, x).y);
      ExpectSameBits(results[1].y, Expected(k, x).y);
      ExpectSameBits(results[2].y, Expected(v, x).y);
      ExpectSameBits(results[0].gates, Expected(q, x).gates);
      ExpectSameBits(results[1].gates, Expected(k, x).gates);
    }
  }
}

TEST(CudaFusedBinaryMosTest, AccumulateAddsToWhatIsThereAndOnlyThere) {
  for (const bool bias : {true, false}) {
    const Layer layer({.in = 264, .out = 100, .bias = bias});
    const std::vector<float> x = RandomInputs(264);
    std::vector<float> before = RandomInputs(100, 99);
    std::vector<float> expected = Expected(layer, x).y;
    for (size_t i = 0; i < 100; ++i) expected[i] = before[i] + expected[i];
    before.resize(164, 12345.0f);
    expected.resize(164, 12345.0f);
    ExpectSameBits(
        ApplyFused({&layer}, x, 2, {{.accumulate = true, .y = before}})[0].y,
        expected);
  }
}

TEST(CudaFusedBinaryMosTest, AnInputThatIsNotFiniteMakesTheOutputNan) {
  for (const bool gate : {true, false}) {
    const Layer layer(
        {.in = 2600, .out = 100, .experts = gate ? 4 : 1, .gate = gate});
    for (const float bad : {kNan, kInf, -kInf}) {
      for (const int64_t place : {0, 2599}) {
        std::vector<float> x = RandomInputs(2600);
        x[place] = bad;
        ExpectSameBits(ApplyFused({&layer}, x, 2, {{}})[0].y,
                       std::vector<float>(100, kNan));
      }
    }
  }
}

TEST(CudaFusedBinaryMosTest, ClustersAreSharedByTheSizeOfTheLayers) {
  cuda::FusedArgs args{.in = 4096, .num_tasks = 2};
  args.tasks[0].out = args.tasks[1].out = 11008;
  cuda::PlanClusters(16, args);
  EXPECT_EQ(args.pairs_per_cluster, 43);
  EXPECT_EQ(args.clusters[0], 8);
  EXPECT_EQ(args.clusters[1], 8);
  EXPECT_EQ(cuda::FusedBinaryMos<16>{args}.grid().x, 128);
  // Two blocks fit on a multiprocessor of an H200.
  EXPECT_LE(cuda::FusedBinaryMos<16>{args}.shared_bytes(), size_t{112} << 10);

  cuda::FusedArgs wide{.in = 13824, .num_tasks = 1};
  wide.tasks[0] = {.out = 100'000, .experts = 8};
  cuda::PlanClusters(16, wide);
  EXPECT_EQ(wide.pairs_per_cluster, cuda::kMaxFusedPairs);
  EXPECT_EQ(wide.clusters[0], 49);  // 3125 pairs of tiles
  EXPECT_LE(cuda::FusedBinaryMos<16>{wide}.shared_bytes(), size_t{112} << 10);
}

}  // namespace
}  // namespace binarymos
