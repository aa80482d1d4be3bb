// The oracle against numbers worked out by hand.
#include <cmath>
#include <cstdint>
#include <vector>

#include "engine/kernels/reference/attention.h"
#include "engine/kernels/reference/element.h"
#include "engine/kernels/reference/float16_linear.h"
#include "engine/kernels/reference/rms_norm.h"
#include "engine/kernels/reference/rope.h"
#include "engine/kernels/reference/softmax.h"
#include "engine/kernels/reference/swiglu.h"
#include "gtest/gtest.h"
#include "tests/engine/kernels/kernel_test_util.h"

namespace binarymos {
namespace {

constexpr uint16_t kOne = 0x3c00, kTwo = 0x4000, kMinusOne = 0xbc00;

TEST(ReferenceTest, ElementReadsEveryFloatType) {
  const std::vector<float> f32 = {1.5f};
  const std::vector<uint16_t> f16 = {kTwo};
  const uint16_t bf16 = 0xc040;
  EXPECT_EQ(reference::Element(View(f32, {1}), 0), 1.5);
  EXPECT_EQ(reference::Element(View(f16, {1}), 0), 2.0);
  EXPECT_EQ(reference::Element({&bf16, DType::kBF16, Shape{1}}, 0), -3.0);
}

TEST(ReferenceTest, RmsNormDividesByTheRootOfTheMeanSquare) {
  const std::vector<float> x = {3.0f, 4.0f};
  const std::vector<uint16_t> weight = {kOne, kTwo};
  const auto out = reference::RmsNorm(View(x, {1, 2}), View(weight, {2}), 0.0);
  EXPECT_DOUBLE_EQ(out[0], 3.0 / std::sqrt(12.5));
  EXPECT_DOUBLE_EQ(out[1], 8.0 / std::sqrt(12.5));
}

TEST(ReferenceTest, Float16LinearMultipliesByTheTransposedWeight) {
  const std::vector<float> x = {1.0f, 2.0f, 3.0f, 4.0f};
  const std::vector<uint16_t> weight = {kOne, kMinusOne, kTwo,
                                        kOne, kOne,      kOne};
  const std::vector<uint16_t> bias = {kOne, kOne, kTwo};
  EXPECT_EQ(reference::Float16Linear(View(x, {2, 2}), View(weight, {3, 2}),
                                     View(bias, {3})),
            (std::vector<double>{0, 5, 5, 0, 11, 9}));
}

TEST(ReferenceTest, RopePairsADimensionWithTheOneHalfAHeadAway) {
  const std::vector<float> x = {1.0f, 2.0f, 3.0f, 4.0f};
  // Position 1 turns the first pair by 90 degrees and leaves the second.
  const std::vector<float> cos = {1, 1, 0, 1};
  const std::vector<float> sin = {0, 0, 1, 0};
  EXPECT_EQ(reference::Rope(View(x, {1, 4}), 4, std::vector<int32_t>{1},
                            View(cos, {2, 2}), View(sin, {2, 2})),
            (std::vector<double>{-3, 2, 1, 4}));
}

TEST(ReferenceTest, SoftmaxDoesNotOverflow) {
  const std::vector<double> x = {1000.0, 1000.0, -1000.0};
  const auto out = reference::Softmax(x);
  EXPECT_DOUBLE_EQ(out[0], 0.5);
  EXPECT_DOUBLE_EQ(out[1], 0.5);
  EXPECT_EQ(out[2], 0.0);
}

TEST(ReferenceTest, SwiGluOfTwoAndOfMinusInfinitysNeighbourhood) {
  const std::vector<float> gate = {2.0f, -1e30f};
  const std::vector<float> up = {3.0f, 1.0f};
  const auto out = reference::SwiGlu(View(gate, {2}), View(up, {2}));
  EXPECT_DOUBLE_EQ(out[0], 6.0 / (1.0 + std::exp(-2.0)));
  EXPECT_EQ(out[1], 0.0);
}

TEST(ReferenceTest, AttentionStopsAtThePositionAndFollowsTheBlockTable) {
  // Head dim 1, pages of two positions; the table swaps the two blocks, so the
  // sequence reads values 30, 40, 10, 20. Zero keys weigh all the same.
  const std::vector<float> q = {1.0f};
  const std::vector<float> keys = {0, 0, 0, 0};
  const std::vector<float> values = {10, 20, 30, 40};
  const std::vector<int32_t> table = {1, 0};
  const Shape cache{2, 1, 2, 1};
  const double expected[] = {30.0, 35.0, 80.0 / 3, 25.0};
  for (int position = 0; position < 4; ++position) {
    EXPECT_DOUBLE_EQ(
        reference::Attention(View(q, {1}), View(keys, cache),
                             View(values, cache), table, position)[0],
        expected[position]);
  }
}

TEST(ReferenceTest, AttentionSharesKvHeadsInGroups) {
  const std::vector<float> q = {1, 1, 1, 1};
  const std::vector<float> keys = {0, 0};
  const std::vector<float> values = {5, 7};
  const Shape cache{1, 2, 1, 1};
  EXPECT_EQ(
      reference::Attention(View(q, {4}), View(keys, cache), View(values, cache),
                           std::vector<int32_t>{0}, 0),
      (std::vector<double>{5, 5, 7, 7}));
}

}  // namespace
}  // namespace binarymos
