// Names of cache blocks by content: a block's hash covers every token up to its
// end, so equal hashes mean equal keys and values.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include "engine/api/types.h"

namespace binarymos {

// A SHA-256 digest. Collision-resistant on purpose: prompts are chosen by
// strangers, and a collision would show one client's context to another.
struct BlockHash {
  std::array<uint8_t, 32> bytes{};

  friend bool operator==(const BlockHash&, const BlockHash&) = default;
};

// The digest is uniform already.
struct BlockHashHasher {
  size_t operator()(const BlockHash& hash) const {
    size_t value;
    std::memcpy(&value, hash.bytes.data(), sizeof(value));
    return value;
  }
};

// Where the chains of `salt` begin. Different salts never share a block.
BlockHash RootHash(std::string_view salt);

// The hash of a block that holds `tokens` after a prefix hashed to `parent`.
BlockHash NextHash(const BlockHash& parent, std::span<const TokenId> tokens);

}  // namespace binarymos
