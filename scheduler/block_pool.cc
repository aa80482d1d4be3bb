#include "scheduler/block_pool.h"

#include "engine/core/check.h"

namespace binarymos {

BlockPool::BlockPool(int num_blocks) {
  BINARYMOS_CHECK_GE(num_blocks, 0);
  blocks_.resize(static_cast<size_t>(num_blocks) + 1);
  blocks_[end()].previous = blocks_[end()].next = end();
  for (BlockId id = 0; id < num_blocks; ++id) Link(id, end());
  // Twice the need, so that the table cleans itself up in place.
  by_hash_.reserve(2 * static_cast<size_t>(num_blocks));
}

BlockId BlockPool::Allocate() {
  BINARYMOS_CHECK_GT(num_free_, 0);
  const BlockId id = blocks_[end()].next;
  Forget(id);
  Hold(id);
  return id;
}

void BlockPool::Hold(BlockId id) {
  if (blocks_[id].ref_count++ == 0) Unlink(id);
}

void BlockPool::Release(BlockId id) {
  Block& block = blocks_[id];
  BINARYMOS_CHECK_GT(block.ref_count, 0) << "block " << id;
  if (--block.ref_count > 0) return;
  Link(id, block.cached ? end() : blocks_[end()].next);
}

BlockId BlockPool::Find(const BlockHash& hash) const {
  const auto found = by_hash_.find(hash);
  return found == by_hash_.end() ? kNoBlock : found->second;
}

void BlockPool::SetHash(BlockId id, const BlockHash& hash) {
  Block& block = blocks_[id];
  BINARYMOS_CHECK(block.ref_count > 0 && !block.cached) << "block " << id;
  if (!by_hash_.try_emplace(hash, id).second) return;
  block.hash = hash;
  block.cached = true;
}

void BlockPool::Forget(BlockId id) {
  Block& block = blocks_[id];
  if (!block.cached) return;
  by_hash_.erase(block.hash);
  block.cached = false;
}

void BlockPool::ForgetFreeBlocks() {
  for (BlockId id = blocks_[end()].next; id != end(); id = blocks_[id].next) {
    Forget(id);
  }
}

void BlockPool::Link(BlockId id, BlockId before) {
  Block& block = blocks_[id];
  block.next = before;
  block.previous = blocks_[before].previous;
  blocks_[block.previous].next = id;
  blocks_[before].previous = id;
  ++num_free_;
}

void BlockPool::Unlink(BlockId id) {
  Block& block = blocks_[id];
  blocks_[block.previous].next = block.next;
  blocks_[block.next].previous = block.previous;
  --num_free_;
}

}  // namespace binarymos
