// EVP allocates a context for every digest (OpenSSL 3.0); a step must not. The
// functions that do not are deprecated in favour of it.
#define OPENSSL_SUPPRESS_DEPRECATED

#include "scheduler/block_hash.h"

#include <openssl/sha.h>

namespace binarymos {
namespace {

// Keeps roots apart from blocks: a block's input begins with a digest.
constexpr std::string_view kRootLabel = "binarymos/kv-cache/root/v1:";

BlockHash Hash(const void* head, size_t head_bytes, const void* tail,
               size_t tail_bytes) {
  SHA256_CTX context;
  SHA256_Init(&context);
  SHA256_Update(&context, head, head_bytes);
  SHA256_Update(&context, tail, tail_bytes);
  BlockHash hash;
  SHA256_Final(hash.bytes.data(), &context);
  return hash;
}

}  // namespace

BlockHash RootHash(std::string_view salt) {
  return Hash(kRootLabel.data(), kRootLabel.size(), salt.data(), salt.size());
}

BlockHash NextHash(const BlockHash& parent, std::span<const TokenId> tokens) {
  return Hash(parent.bytes.data(), parent.bytes.size(), tokens.data(),
              tokens.size_bytes());
}

}  // namespace binarymos
