#include "scheduler/kv_cache_manager.h"

#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/scheduler/scheduler_test_peer.h"

namespace binarymos {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

CacheConfig Config(int num_blocks) {
  CacheConfig config;
  config.num_blocks = num_blocks;
  config.block_size = 4;
  config.max_model_len = 64;
  return config;
}

// A sequence whose prompt is 0, 1, 2, ...
Sequence MakeSequence(int num_tokens, std::string tenant = "") {
  auto request = std::make_shared<Request>();
  request->prompt.resize(static_cast<size_t>(num_tokens));
  std::iota(request->prompt.begin(), request->prompt.end(), 0);
  request->max_tokens = 8;
  request->tenant = std::move(tenant);
  return Sequence(std::move(request), 0, 64);
}

// Computes the whole prompt.
void Compute(KvCacheManager& kv, Sequence& seq) {
  const std::vector<BlockId> prefix = [&] {
    const auto match = kv.MatchPrefix(seq);
    return std::vector<BlockId>(match.begin(), match.end());
  }();
  ASSERT_TRUE(kv.Reserve(seq, seq.num_tokens(), prefix));
  seq.Start(static_cast<int>(prefix.size()) * 4);
  seq.Advance(seq.num_computable_tokens(), 0);
  kv.CacheFullBlocks(seq);
}

TEST(KvCacheManagerTest, ReserveGrowsTheTableAsFarAsNeeded) {
  KvCacheManager kv(Config(4), true);
  Sequence seq = MakeSequence(3);
  EXPECT_TRUE(kv.Reserve(seq, 3));
  EXPECT_THAT(seq.blocks.table, ElementsAre(0));
  EXPECT_TRUE(kv.Reserve(seq, 4));
  EXPECT_THAT(seq.blocks.table, ElementsAre(0));
  EXPECT_TRUE(kv.Reserve(seq, 9));
  EXPECT_THAT(seq.blocks.table, ElementsAre(0, 1, 2));
  kv.Release(seq);
}

TEST(KvCacheManagerTest, ReserveThatFailsChangesNothing) {
  KvCacheManager kv(Config(2), true);
  Sequence seq = MakeSequence(12);
  EXPECT_FALSE(kv.Reserve(seq, 12));
  EXPECT_THAT(seq.blocks.table, IsEmpty());
  EXPECT_EQ(kv.pool().num_free_blocks(), 2);
}

TEST(KvCacheManagerTest, ReserveLeavesTheBlocksItIsToldToKeep) {
  KvCacheManager kv(Config(4), true);
  Sequence seq = MakeSequence(12);
  EXPECT_FALSE(kv.Reserve(seq, 12, {}, 2));
  EXPECT_TRUE(kv.Reserve(seq, 12, {}, 1));
  kv.Release(seq);
}

TEST(KvCacheManagerTest, FullBlocksOfAPrefixAreShared) {
  KvCacheManager kv(Config(8), true);
  Sequence a = MakeSequence(10);
  Sequence b = MakeSequence(11);
  Compute(kv, a);
  Compute(kv, b);
  EXPECT_THAT(a.blocks.table, ElementsAre(0, 1, 2));
  EXPECT_THAT(b.blocks.table, ElementsAre(0, 1, 3));
  EXPECT_EQ(kv.pool().ref_count(0), 2);
  kv.Release(a);
  kv.Release(b);
  EXPECT_EQ(kv.pool().num_free_blocks(), 8);
}

TEST(KvCacheManagerTest, SharedPrefixSurvivesOwnerRelease) {
  KvCacheManager kv(Config(3), true);
  Sequence a = MakeSequence(9);
  Compute(kv, a);
  kv.Release(a);
  Sequence b = MakeSequence(9);
  EXPECT_THAT(kv.MatchPrefix(b), ElementsAre(0, 1));
}

TEST(KvCacheManagerTest, OneTokenIsLeftToCompute) {
  KvCacheManager kv(Config(4), true);
  Sequence a = MakeSequence(8);
  Compute(kv, a);
  Sequence b = MakeSequence(8);
  EXPECT_THAT(kv.MatchPrefix(b), ElementsAre(0));
  kv.Release(a);
}

TEST(KvCacheManagerTest, FreeBlocksOfAPrefixCountAgainstTheFreeOnes) {
  KvCacheManager kv(Config(3), true);
  Sequence a = MakeSequence(9);
  Compute(kv, a);
  kv.Release(a);
  Sequence b = MakeSequence(13);
  const auto prefix = kv.MatchPrefix(b);
  ASSERT_EQ(prefix.size(), 2u);
  EXPECT_FALSE(kv.Reserve(b, 13, prefix));  // 2 cached + 2 new > 3
  EXPECT_EQ(kv.pool().num_free_blocks(), 3);
  SchedulerTestPeer::CheckPool(kv.pool());
}

TEST(KvCacheManagerTest, EndOfAPrefixIsEvictedFirst) {
  KvCacheManager kv(Config(3), true);
  Sequence a = MakeSequence(12);
  Compute(kv, a);
  kv.Release(a);
  Sequence other = MakeSequence(1);
  ASSERT_TRUE(kv.Reserve(other, 1));
  Sequence b = MakeSequence(12);
  EXPECT_THAT(kv.MatchPrefix(b), ElementsAre(0, 1));
  kv.Release(other);
}

TEST(KvCacheManagerTest, TenantsDoNotShare) {
  KvCacheManager kv(Config(8), true);
  Sequence a = MakeSequence(9, "a");
  Compute(kv, a);
  Sequence b = MakeSequence(9, "b");
  EXPECT_THAT(kv.MatchPrefix(b), IsEmpty());
  kv.Release(a);
}

TEST(KvCacheManagerTest, NothingIsSharedWhenCachingIsOff) {
  KvCacheManager kv(Config(8), false);
  Sequence a = MakeSequence(9);
  Compute(kv, a);
  Sequence b = MakeSequence(9);
  EXPECT_THAT(kv.MatchPrefix(b), IsEmpty());
  kv.Release(a);
}

TEST(KvCacheManagerTest, ForgottenBlocksAreNotFound) {
  KvCacheManager kv(Config(8), true);
  Sequence a = MakeSequence(9);
  Compute(kv, a);
  kv.Forget(a);
  kv.Release(a);
  Sequence b = MakeSequence(9);
  EXPECT_THAT(kv.MatchPrefix(b), IsEmpty());
}

TEST(KvCacheManagerTest, FlushForgetsWhatNobodyOwns) {
  KvCacheManager kv(Config(8), true);
  Sequence a = MakeSequence(5);
  Sequence b = MakeSequence(9);
  Compute(kv, a);
  Compute(kv, b);
  kv.Release(b);
  kv.Flush();
  Sequence c = MakeSequence(9);
  EXPECT_THAT(kv.MatchPrefix(c), ElementsAre(0));
  kv.Release(a);
}

}  // namespace
}  // namespace binarymos
