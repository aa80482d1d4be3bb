#include "engine/kv_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/backend/backend_factory.h"

namespace binarymos {
namespace {

using ::testing::HasSubstr;

// 2 x 3 layers x 2 heads x 8 x 2 bytes x 16 positions = 3072 bytes a block.
constexpr KvCacheShape kShape{3, 2, 8, DType::kF16};

TEST(KvCacheTest, ABlockHoldsKeysAndValuesOfSixteenPositions) {
  EXPECT_EQ(kShape.bytes_per_token(), 192);
  EXPECT_EQ(kShape.bytes_per_block(), 3072);
}

TEST(KvCacheTest, Float8TakesHalfTheMemoryAndHoldsTwiceThePositions) {
  KvCacheShape shape = kShape;
  shape.dtype = DType::kF8E4M3;
  EXPECT_EQ(shape.bytes_per_token() * 2, kShape.bytes_per_token());
  const KvCacheLimits limits{
      .pool_bytes = 3072 * 10, .max_num_seqs = 2, .max_model_len = 40};
  const auto blocks = NumKvCacheBlocks(shape, limits);
  ASSERT_TRUE(blocks.ok());
  EXPECT_EQ(*blocks, 20);
}

TEST(KvCacheTest, TypesHaveNamesAndOthersAreRefusedWithThoseNames) {
  EXPECT_EQ(*KvCacheDType("f16"), DType::kF16);
  EXPECT_EQ(*KvCacheDType("fp8_e4m3"), DType::kF8E4M3);
  EXPECT_EQ(*KvCacheDType("f32"), DType::kF32);
  const absl::Status status = KvCacheDType("fp8").status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("it must be f16, fp8_e4m3 or f32"));
}

TEST(KvCacheTest, ThePoolIsFilledWithBlocks) {
  const auto blocks = NumKvCacheBlocks(
      kShape,
      {.pool_bytes = 3072 * 10 + 3071, .max_num_seqs = 2, .max_model_len = 40});
  ASSERT_TRUE(blocks.ok());
  EXPECT_EQ(*blocks, 10);
}

TEST(KvCacheTest, APoolThatNobodySizedStopsAtTheWorkingSet) {
  const auto blocks = NumKvCacheBlocks(kShape, {.pool_bytes = 1 << 30,
                                                .max_num_seqs = 2,
                                                .max_model_len = 40,
                                                .cap_at_working_set = true});
  ASSERT_TRUE(blocks.ok());
  EXPECT_EQ(*blocks, 2 * 3);
}

TEST(KvCacheTest, TooSmallAPoolIsExplainedWithTheArithmetic) {
  const auto blocks = NumKvCacheBlocks(
      kShape, {.pool_bytes = 3072 * 2, .max_num_seqs = 2, .max_model_len = 40});
  EXPECT_EQ(blocks.status().code(), absl::StatusCode::kResourceExhausted);
  const std::string message(blocks.status().message());
  EXPECT_THAT(message, HasSubstr("3 blocks of 3072 bytes"));
  EXPECT_THAT(message, HasSubstr("--kv-cache-memory to at least 9216"));
  EXPECT_THAT(message, HasSubstr("--max-model-len to at most 32"));
}

TEST(KvCacheTest, LayersHaveTheirOwnMemory) {
  auto backend = CreateBackend({.device = "cpu", .num_threads = 1});
  ASSERT_TRUE(backend.ok()) << backend.status();
  const auto cache = KvCache::Allocate(**backend, kShape, 5);
  ASSERT_TRUE(cache.ok()) << cache.status();
  EXPECT_EQ(cache->bytes(), 5 * 3072);
  ASSERT_EQ(cache->layers().size(), 3u);
  for (const KvLayer& layer : cache->layers()) {
    EXPECT_EQ(layer.keys.shape, (Shape{5, 2, kBlockSize, 8}));
    EXPECT_EQ(layer.values.shape, layer.keys.shape);
    EXPECT_EQ(layer.keys.dtype, DType::kF16);
    EXPECT_NE(layer.keys.data, layer.values.data);
  }
  EXPECT_NE(cache->layers()[0].keys.data, cache->layers()[1].keys.data);
}

}  // namespace
}  // namespace binarymos
