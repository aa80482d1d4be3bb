#include "scheduler/kv_cache_manager.h"

#include <algorithm>

#include "engine/core/check.h"

namespace binarymos {

KvCacheManager::KvCacheManager(const CacheConfig& config, bool prefix_caching)
    : block_size_(config.block_size),
      prefix_caching_(prefix_caching),
      pool_(config.num_blocks) {
  match_.reserve(NumBlocksFor(config.max_model_len));
}

std::span<const BlockId> KvCacheManager::MatchPrefix(Sequence& seq) {
  match_.clear();
  if (!prefix_caching_) return match_;
  const int max_blocks = num_shareable_blocks(seq);
  for (int i = 0; i < max_blocks; ++i) {
    ExtendHashes(seq, i + 1);
    const BlockId block = pool_.Find(seq.blocks.hashes[i]);
    if (block == kNoBlock) break;
    match_.push_back(block);
  }
  return match_;
}

int KvCacheManager::CountCachedBlocks(Sequence& seq) {
  if (!prefix_caching_) return 0;
  int& count = seq.blocks.num_matched;
  // Of a prefix the end is evicted first.
  if (count > 0 && pool_.Find(seq.blocks.hashes[count - 1]) == kNoBlock) {
    count = 0;
  }
  const int max_blocks = num_shareable_blocks(seq);
  while (count < max_blocks) {
    ExtendHashes(seq, count + 1);
    if (pool_.Find(seq.blocks.hashes[count]) == kNoBlock) break;
    ++count;
  }
  return count;
}

bool KvCacheManager::SameBlock(Sequence& a, Sequence& b, int i) {
  const int num_tokens = (i + 1) * block_size_;
  if (a.num_tokens() < num_tokens || b.num_tokens() < num_tokens ||
      a.request().tenant != b.request().tenant) {
    return false;
  }
  ExtendHashes(a, i + 1);
  ExtendHashes(b, i + 1);
  return a.blocks.hashes[i] == b.blocks.hashes[i];
}

bool KvCacheManager::Reserve(Sequence& seq, int num_tokens,
                             std::span<const BlockId> prefix, int keep_free) {
  std::vector<BlockId>& table = seq.blocks.table;
  BINARYMOS_CHECK(prefix.empty() || table.empty());
  const int num_owned = static_cast<int>(table.size() + prefix.size());
  const int num_new = std::max(0, NumBlocksFor(num_tokens) - num_owned);
  if (num_new == 0 && prefix.empty()) return true;

  int num_taken = num_new;  // a cached block that nobody holds is free too
  for (const BlockId block : prefix) {
    if (pool_.ref_count(block) == 0) ++num_taken;
  }
  if (num_taken + keep_free > pool_.num_free_blocks()) return false;

  if (table.empty()) {  // room for all that may come, so steps do not allocate
    const int max_blocks = NumBlocksFor(seq.max_num_tokens());
    table.reserve(max_blocks);
    if (prefix_caching_) seq.blocks.hashes.reserve(max_blocks);
  }
  for (const BlockId block : prefix) {
    pool_.Hold(block);
    table.push_back(block);
  }
  seq.blocks.num_cached += static_cast<int>(prefix.size());
  for (int i = 0; i < num_new; ++i) table.push_back(pool_.Allocate());
  return true;
}

void KvCacheManager::CacheFullBlocks(Sequence& seq) {
  if (!prefix_caching_) return;
  const int num_full =
      std::min(seq.num_computed_tokens(), seq.num_tokens()) / block_size_;
  SequenceBlocks& blocks = seq.blocks;
  if (num_full <= blocks.num_cached) return;
  ExtendHashes(seq, num_full);
  for (; blocks.num_cached < num_full; ++blocks.num_cached) {
    pool_.SetHash(blocks.table[blocks.num_cached],
                  blocks.hashes[blocks.num_cached]);
  }
}

void KvCacheManager::Forget(Sequence& seq) {
  for (const BlockId block : seq.blocks.table) pool_.Forget(block);
}

void KvCacheManager::Release(Sequence& seq) {
  std::vector<BlockId>& table = seq.blocks.table;
  for (auto block = table.rbegin(); block != table.rend(); ++block) {
    pool_.Release(*block);
  }
  table.clear();
  seq.blocks.num_cached = 0;
}

void KvCacheManager::ExtendHashes(Sequence& seq, int num_blocks) {
  std::vector<BlockHash>& hashes = seq.blocks.hashes;
  while (static_cast<int>(hashes.size()) < num_blocks) {
    const BlockHash parent =
        hashes.empty() ? RootHash(seq.request().tenant) : hashes.back();
    hashes.push_back(NextHash(
        parent,
        seq.tokens().subspan(hashes.size() * block_size_, block_size_)));
  }
}

}  // namespace binarymos
