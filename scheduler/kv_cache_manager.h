// Which cache blocks each sequence owns.
#pragma once

#include <span>
#include <vector>

#include "engine/api/types.h"
#include "scheduler/block_hash.h"
#include "scheduler/block_pool.h"
#include "scheduler/sequence.h"

namespace binarymos {

// Gives blocks to sequences and finds those that hold a prefix already.
// Accounting only: the memory is the engine's. Confined to the serving-loop
// thread. Sequences must be released before they are destroyed.
//
// Only full blocks are shared, found by the chained hash of their tokens under
// the salt of the request's tenant. A block can be found as soon as the step
// that fills it is scheduled: steps run in order, and inside a step every row
// writes its keys and values before any row reads them.
class KvCacheManager {
 public:
  KvCacheManager(const CacheConfig& config, bool prefix_caching);

  const BlockPool& pool() const { return pool_; }
  bool prefix_caching() const { return prefix_caching_; }
  int NumBlocksFor(int num_tokens) const {
    return (num_tokens + block_size_ - 1) / block_size_;
  }

  // The longest run of cached blocks that begins `seq`, leaving at least one
  // token to compute. Takes nothing. Valid until the next call.
  std::span<const BlockId> MatchPrefix(Sequence& seq);

  // How many blocks MatchPrefix would find, without a look at those that were
  // there the last time: a guess, for choosing.
  int CountCachedBlocks(Sequence& seq);

  // Full blocks that `seq` could share with others.
  int num_shareable_blocks(const Sequence& seq) const {
    return (seq.num_tokens() - 1) / block_size_;
  }

  // Whether block `i` holds the same in both. False if one of them does not
  // have as many tokens yet, or they are of different tenants.
  bool SameBlock(Sequence& a, Sequence& b, int i);

  // Grows `seq`'s block table to hold `num_tokens` positions; a table that is
  // empty begins with `prefix`, a result of MatchPrefix. On false nothing has
  // changed: fewer than `keep_free` blocks would have been left.
  bool Reserve(Sequence& seq, int num_tokens,
               std::span<const BlockId> prefix = {}, int keep_free = 0);

  // Lets the blocks be found whose tokens are known and computed (or being
  // computed).
  void CacheFullBlocks(Sequence& seq);

  // The blocks of `seq` cannot be found any more: their content is not to be
  // trusted.
  void Forget(Sequence& seq);

  // Takes all blocks from `seq`. They are let go in reverse, so that of a
  // prefix the end is evicted first.
  void Release(Sequence& seq);

  // Forgets what no sequence owns.
  void Flush() { pool_.ForgetFreeBlocks(); }

 private:
  void ExtendHashes(Sequence& seq, int num_blocks);

  const int block_size_;
  const bool prefix_caching_;
  BlockPool pool_;
  std::vector<BlockId> match_;
};

}  // namespace binarymos
