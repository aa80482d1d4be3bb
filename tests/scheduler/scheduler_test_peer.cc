#include "tests/scheduler/scheduler_test_peer.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace binarymos {

using State = SequencePlace::State;

void SchedulerTestPeer::CheckPool(const BlockPool& pool) {
  std::vector<bool> free(static_cast<size_t>(pool.num_blocks()));
  int num_free = 0;
  BlockId previous = pool.end();
  for (BlockId id = pool.blocks_[pool.end()].next; id != pool.end();
       id = pool.blocks_[id].next) {
    ASSERT_FALSE(free[static_cast<size_t>(id)]) << id << " is free twice";
    free[static_cast<size_t>(id)] = true;
    ++num_free;
    EXPECT_EQ(pool.blocks_[id].ref_count, 0) << "block " << id;
    EXPECT_EQ(pool.blocks_[id].previous, previous) << "block " << id;
    previous = id;
  }
  EXPECT_EQ(pool.num_free_, num_free);
  size_t num_cached = 0;
  for (BlockId id = 0; id < pool.num_blocks(); ++id) {
    const BlockPool::Block& block = pool.blocks_[id];
    EXPECT_EQ(block.ref_count == 0, free[static_cast<size_t>(id)])
        << "block " << id;
    if (!block.cached) continue;
    ++num_cached;
    EXPECT_EQ(pool.Find(block.hash), id);
  }
  EXPECT_EQ(pool.by_hash_.size(), num_cached);
}

void SchedulerTestPeer::CheckInvariants(const Scheduler& scheduler) {
  const BlockPool& pool = scheduler.kv_.pool();
  CheckPool(pool);

  std::vector<int> owners(static_cast<size_t>(pool.num_blocks()));
  std::vector<const Sequence*> seen_in(owners.size());
  std::set<SlotId> slots(scheduler.free_slots_.begin(),
                         scheduler.free_slots_.end());
  EXPECT_EQ(slots.size(), scheduler.free_slots_.size());
  int num_running = 0;
  int num_waiting = 0;
  int num_held = 0;
  int num_held_blocks = 0;
  std::map<const TenantShare*, std::pair<int, int>> shares;  // waiting, running
  const auto check = [&](const Scheduler::RequestState& state) {
    int num_unfinished = 0;
    for (const Sequence& seq : state.samples) {
      const SequencePlace& place = seq.place;
      num_running += place.state == State::kRunning ? 1 : 0;
      num_waiting += place.state == State::kWaiting ? 1 : 0;
      num_unfinished += place.state == State::kFinished ? 0 : 1;
      num_held += place.held ? 1 : 0;
      if (place.held) num_held_blocks += std::ssize(seq.blocks.table);
      EXPECT_EQ(place.share == nullptr, place.state == State::kFinished);
      if (place.state == State::kWaiting) ++shares[place.share].first;
      if (place.state == State::kRunning) ++shares[place.share].second;
      if (place.slot != kNoSlot) {
        EXPECT_TRUE(slots.insert(place.slot).second) << "slot " << place.slot;
      }
      if (place.state == State::kRunning) {
        EXPECT_NE(place.slot, kNoSlot);
        EXPECT_FALSE(place.held);
        EXPECT_EQ(std::count(scheduler.running_.begin(),
                             scheduler.running_.end(), &seq),
                  1);
      } else {
        const bool owns = place.slot != kNoSlot || !seq.blocks.table.empty();
        EXPECT_EQ(owns, place.held);
        EXPECT_EQ(place.held, place.num_rows_in_flight > 0);
      }
      for (const BlockId block : seq.blocks.table) {
        ++owners[static_cast<size_t>(block)];
        EXPECT_NE(std::exchange(seen_in[static_cast<size_t>(block)], &seq),
                  &seq)
            << "block " << block << " is twice in a table";
      }
    }
    EXPECT_EQ(state.num_unfinished, num_unfinished);
  };
  for (const auto& [id, state] : scheduler.requests_) {
    check(*state);
    EXPECT_GT(state->num_unfinished, 0) << "request " << id;
  }
  for (const auto& state : scheduler.ended_) {
    check(*state);
    EXPECT_EQ(state->num_unfinished, 0);
  }

  EXPECT_EQ(static_cast<int>(slots.size()),
            scheduler.options_.cache.max_num_seqs);
  EXPECT_EQ(num_running, static_cast<int>(scheduler.running_.size()));
  EXPECT_EQ(num_waiting, scheduler.waiting_.size());
  EXPECT_EQ(num_held, scheduler.num_held_);
  EXPECT_EQ(num_held_blocks, scheduler.num_held_blocks_);
  for (const auto& [share, counts] : shares) {
    EXPECT_EQ(share->num_waiting, counts.first) << "tenant " << share->tenant;
    EXPECT_EQ(share->num_running, counts.second) << "tenant " << share->tenant;
  }
  EXPECT_EQ(scheduler.shares_.num_tenants(), std::ssize(shares));
  EXPECT_TRUE(std::is_sorted(
      scheduler.running_.begin(), scheduler.running_.end(),
      [](const Sequence* a, const Sequence* b) { return RunsBefore(*a, *b); }));
  for (BlockId id = 0; id < pool.num_blocks(); ++id) {
    EXPECT_EQ(pool.ref_count(id), owners[static_cast<size_t>(id)])
        << "block " << id;
  }
  const SchedulerStats& stats = scheduler.stats();
  EXPECT_EQ(stats.num_running, num_running);
  EXPECT_EQ(stats.num_waiting, num_waiting);
  EXPECT_EQ(stats.num_free_blocks, pool.num_free_blocks());
}

void SchedulerTestPeer::CheckIdle(const Scheduler& scheduler) {
  CheckInvariants(scheduler);
  EXPECT_TRUE(scheduler.empty());
  EXPECT_EQ(scheduler.num_in_flight_, 0);
  EXPECT_TRUE(scheduler.running_.empty());
  EXPECT_EQ(scheduler.waiting_.size(), 0);
  EXPECT_TRUE(scheduler.deadlines_.empty());
  EXPECT_EQ(static_cast<int>(scheduler.free_slots_.size()),
            scheduler.options_.cache.max_num_seqs);
  EXPECT_EQ(scheduler.kv_.pool().num_free_blocks(),
            scheduler.kv_.pool().num_blocks());
}

int SchedulerTestPeer::NumNotStarted(const Scheduler& scheduler) {
  int count = 0;
  for (const auto& [id, state] : scheduler.requests_) {
    count += state->started ? 0 : 1;
  }
  return count;
}

void SchedulerTestPeer::ForEachSequence(
    const Scheduler& scheduler,
    const std::function<void(const Sequence&)>& visit) {
  for (const auto& [id, state] : scheduler.requests_) {
    for (const Sequence& seq : state->samples) {
      if (seq.place.state != State::kFinished) visit(seq);
    }
  }
}

}  // namespace binarymos
