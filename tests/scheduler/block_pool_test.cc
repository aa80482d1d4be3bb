#include "scheduler/block_pool.h"

#include <vector>

#include "gtest/gtest.h"
#include "tests/scheduler/scheduler_test_peer.h"

namespace binarymos {
namespace {

BlockHash HashOf(uint8_t value) {
  BlockHash hash;
  hash.bytes.fill(value);
  return hash;
}

TEST(BlockPoolTest, HandsOutEveryBlockOnce) {
  BlockPool pool(3);
  EXPECT_EQ(pool.num_free_blocks(), 3);
  EXPECT_EQ(pool.Allocate(), 0);
  EXPECT_EQ(pool.Allocate(), 1);
  EXPECT_EQ(pool.Allocate(), 2);
  EXPECT_EQ(pool.num_free_blocks(), 0);
  SchedulerTestPeer::CheckPool(pool);
}

TEST(BlockPoolTest, BlockIsFreeWhenItsLastHolderLetsGo) {
  BlockPool pool(2);
  const BlockId block = pool.Allocate();
  pool.Hold(block);
  pool.Release(block);
  EXPECT_EQ(pool.num_free_blocks(), 1);
  pool.Release(block);
  EXPECT_EQ(pool.num_free_blocks(), 2);
  SchedulerTestPeer::CheckPool(pool);
}

TEST(BlockPoolTest, CachedBlocksAreEvictedInTheOrderTheyWereReleased) {
  BlockPool pool(3);
  for (uint8_t i = 0; i < 3; ++i) pool.SetHash(pool.Allocate(), HashOf(i));
  pool.Release(1);
  pool.Release(2);
  pool.Release(0);
  EXPECT_EQ(pool.Allocate(), 1);
  EXPECT_EQ(pool.Allocate(), 2);
  EXPECT_EQ(pool.Allocate(), 0);
}

TEST(BlockPoolTest, BlocksWithoutHashAreEvictedFirst) {
  BlockPool pool(3);
  for (int i = 0; i < 3; ++i) pool.Allocate();
  pool.SetHash(0, HashOf(0));
  pool.Release(0);
  pool.Release(1);
  pool.Release(2);
  EXPECT_EQ(pool.Allocate(), 2);
  EXPECT_EQ(pool.Allocate(), 1);
  EXPECT_EQ(pool.Find(HashOf(0)), 0);
}

TEST(BlockPoolTest, FreeBlockKeepsItsHashUntilItIsHandedOut) {
  BlockPool pool(1);
  pool.SetHash(pool.Allocate(), HashOf(7));
  pool.Release(0);
  EXPECT_EQ(pool.Find(HashOf(7)), 0);
  pool.Allocate();
  EXPECT_EQ(pool.Find(HashOf(7)), kNoBlock);
  SchedulerTestPeer::CheckPool(pool);
}

TEST(BlockPoolTest, HoldTakesAFreeBlockOutOfTheMiddle) {
  BlockPool pool(3);
  for (uint8_t i = 0; i < 3; ++i) pool.SetHash(pool.Allocate(), HashOf(i));
  for (BlockId i = 0; i < 3; ++i) pool.Release(i);
  pool.Hold(1);
  SchedulerTestPeer::CheckPool(pool);
  EXPECT_EQ(pool.Allocate(), 0);
  EXPECT_EQ(pool.Allocate(), 2);
  EXPECT_EQ(pool.Find(HashOf(1)), 1);
}

TEST(BlockPoolTest, FirstOfTwoEqualBlocksIsFound) {
  BlockPool pool(2);
  pool.SetHash(pool.Allocate(), HashOf(1));
  pool.SetHash(pool.Allocate(), HashOf(1));
  EXPECT_EQ(pool.Find(HashOf(1)), 0);
  EXPECT_FALSE(pool.is_cached(1));
  SchedulerTestPeer::CheckPool(pool);
}

TEST(BlockPoolTest, ForgetFreeBlocksLeavesHeldOnesFindable) {
  BlockPool pool(2);
  pool.SetHash(pool.Allocate(), HashOf(0));
  pool.SetHash(pool.Allocate(), HashOf(1));
  pool.Release(0);
  pool.ForgetFreeBlocks();
  EXPECT_EQ(pool.Find(HashOf(0)), kNoBlock);
  EXPECT_EQ(pool.Find(HashOf(1)), 1);
  SchedulerTestPeer::CheckPool(pool);
}

TEST(BlockPoolDeathTest, ReleasingAFreeBlockIsABug) {
  BlockPool pool(1);
  pool.Allocate();
  pool.Release(0);
  EXPECT_DEATH(pool.Release(0), "ref_count");
}

}  // namespace
}  // namespace binarymos
