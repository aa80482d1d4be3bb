#include "engine/core/tensor.h"

#include <cstdint>
#include <utility>
#include <vector>

#include "engine/core/buffer.h"
#include "gtest/gtest.h"

namespace binarymos {
namespace {

TEST(ShapeTest, CountsItsElements) {
  EXPECT_EQ((Shape{2, 3, 4}).num_elements(), 24);
  EXPECT_EQ((Shape{7, 0}).num_elements(), 0);
  EXPECT_EQ(Shape{}.num_elements(), 1);
  EXPECT_EQ((Shape{1 << 20, 1 << 20}).num_elements(), int64_t{1} << 40);
}

TEST(ShapeTest, ComparesRankAndSizes) {
  EXPECT_EQ((Shape{2, 3}), (Shape{2, 3}));
  EXPECT_NE((Shape{2, 3}), (Shape{3, 2}));
  EXPECT_NE((Shape{2}), (Shape{2, 1}));
}

TEST(ShapeTest, PrintsLikePython) {
  EXPECT_EQ((Shape{2, 3}).ToString(), "[2, 3]");
  EXPECT_EQ(Shape{}.ToString(), "[]");
}

TEST(ShapeDeathTest, ADimensionOutOfRangeIsFatal) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const Shape shape{2, 3};
  EXPECT_DEATH((void)shape[2], "dimension 2");
}

TEST(DTypeTest, NamesAndSizesAreThoseOfSafetensors) {
  const struct {
    DType dtype;
    const char* name;
    size_t size;
  } cases[] = {{DType::kF32, "F32", 4},
               {DType::kF16, "F16", 2},
               {DType::kBF16, "BF16", 2},
               {DType::kU8, "U8", 1},
               {DType::kI32, "I32", 4}};
  for (const auto& c : cases) {
    EXPECT_STREQ(Name(c.dtype), c.name);
    EXPECT_EQ(SizeOf(c.dtype), c.size);
  }
}

TEST(TensorViewTest, RowsAreViewsOfTheSameMemory) {
  std::vector<float> values = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
  const TensorView view{values.data(), DType::kF32, Shape{3, 2, 2}};
  const TensorView row = view.Row(1);
  EXPECT_EQ(row.shape, (Shape{2, 2}));
  EXPECT_EQ(row.span<float>()[0], 4);
  EXPECT_EQ(row.Row(1).span<float>()[0], 6);
  row.span<float>()[0] = 40;
  EXPECT_EQ(values[4], 40);
}

TEST(TensorViewTest, FirstRowsKeepsTheOtherDimensions) {
  std::vector<uint16_t> values(24);
  const TensorView view{values.data(), DType::kF16, Shape{4, 3, 2}};
  const TensorView rows = view.FirstRows(2);
  EXPECT_EQ(rows.shape, (Shape{2, 3, 2}));
  EXPECT_EQ(rows.bytes(), 24u);
  EXPECT_EQ(view.FirstRows(0).bytes(), 0u);
  EXPECT_EQ(view.FirstRows(4).shape, view.shape);
}

TEST(TensorViewTest, AnAbsentTensorIsFalse) {
  EXPECT_FALSE(ConstTensorView{});
  EXPECT_FALSE(TensorView{});
}

TEST(TensorViewDeathTest, TheWrongElementSizeIsFatal) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  float value = 0;
  const TensorView view{&value, DType::kF32, Shape{1}};
  EXPECT_DEATH((void)view.span<uint16_t>(), "2 vs. 4");
}

TEST(TensorTest, MovingLeavesNothingBehind) {
  auto buffer = Buffer::AllocateHost(16);
  ASSERT_TRUE(buffer.ok());
  Tensor first(*std::move(buffer), DType::kF32, Shape{4}, Device::kHost);
  EXPECT_EQ(first.bytes(), 16u);
  Tensor second(std::move(first));
  EXPECT_EQ(second.bytes(), 16u);
  EXPECT_EQ(first.bytes(), 0u);  // NOLINT(bugprone-use-after-move)
  EXPECT_FALSE(first.view());
  EXPECT_EQ(Tensor().bytes(), 0u);
}

}  // namespace
}  // namespace binarymos
