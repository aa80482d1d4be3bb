// The blocks of the KV cache: who holds them, and what the free ones still
// contain.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "engine/api/types.h"
#include "scheduler/block_hash.h"

namespace binarymos {

inline constexpr BlockId kNoBlock = -1;

// Accounting only: the memory is the engine's. Every operation is O(1) and, but
// for the constructor, allocates nothing. Confined to the serving-loop thread.
//
// A block that nobody holds waits in the free list in the order of eviction:
// those without a hash first, then the ones released longest ago. Until it is
// handed out again it keeps its hash and can be found and held anew.
class BlockPool {
 public:
  explicit BlockPool(int num_blocks);

  int num_blocks() const { return static_cast<int>(blocks_.size()) - 1; }
  int num_free_blocks() const { return num_free_; }
  int ref_count(BlockId id) const { return blocks_[id].ref_count; }
  bool is_cached(BlockId id) const { return blocks_[id].cached; }

  // Hands out the next block to evict, held once and without a hash.
  // REQUIRES: num_free_blocks() > 0.
  BlockId Allocate();

  // Holds a block once more; a free one leaves the free list.
  void Hold(BlockId id);

  // Lets go of a block once. REQUIRES: it is held.
  void Release(BlockId id);

  // The block that was given `hash`, or kNoBlock.
  BlockId Find(const BlockHash& hash) const;

  // Lets a block be found by `hash`. No effect if another block is: contents
  // are the same, and block tables do not change afterwards.
  // REQUIRES: the block is held.
  void SetHash(BlockId id, const BlockHash& hash);

  // The block cannot be found any more.
  void Forget(BlockId id);

  // Forgets the hashes of all free blocks. Linear in their number.
  void ForgetFreeBlocks();

 private:
  friend class SchedulerTestPeer;

  struct Block {
    int ref_count = 0;
    BlockId previous = kNoBlock;  // in the free list
    BlockId next = kNoBlock;
    bool cached = false;  // `hash` is in by_hash_
    BlockHash hash;
  };

  BlockId end() const { return static_cast<BlockId>(num_blocks()); }
  void Link(BlockId id, BlockId before);
  void Unlink(BlockId id);

  // The last element closes the ring of the free list: its `next` is the head.
  std::vector<Block> blocks_;
  int num_free_ = 0;
  absl::flat_hash_map<BlockHash, BlockId, BlockHashHasher> by_hash_;
};

}  // namespace binarymos
