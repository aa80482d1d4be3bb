#include "scheduler/block_hash.h"

#include <iomanip>
#include <sstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace binarymos {
namespace {

std::string Hex(const BlockHash& hash) {
  std::ostringstream hex;
  for (const uint8_t byte : hash.bytes) {
    hex << std::hex << std::setw(2) << std::setfill('0') << int{byte};
  }
  return hex.str();
}

TEST(BlockHashTest, IsSha256OfParentAndTokens) {
  const std::vector<TokenId> tokens = {1, 2, 3, 4};
  // SHA-256 of 32 zero bytes and the tokens in little endian.
  EXPECT_EQ(Hex(NextHash(BlockHash{}, tokens)),
            "d8faa8ec8c0500567ca87b56e4bb666d69cb512e638103891defea24e88cbc92");
}

TEST(BlockHashTest, SameChainGivesSameHash) {
  const std::vector<TokenId> tokens = {5, 6, 7, 8};
  EXPECT_EQ(NextHash(RootHash("x"), tokens), NextHash(RootHash("x"), tokens));
}

TEST(BlockHashTest, DependsOnEveryPredecessor) {
  const std::vector<TokenId> first = {1, 2};
  const std::vector<TokenId> other = {1, 3};
  const std::vector<TokenId> second = {4, 5};
  const BlockHash root = RootHash("");
  EXPECT_NE(NextHash(NextHash(root, first), second),
            NextHash(NextHash(root, other), second));
}

TEST(BlockHashTest, DependsOnSalt) {
  EXPECT_NE(RootHash("tenant a"), RootHash("tenant b"));
  EXPECT_NE(RootHash(""), RootHash("tenant a"));
}

TEST(BlockHashTest, SaltThatLooksLikeABlockIsNoBlock) {
  const std::vector<TokenId> tokens = {1, 2, 3, 4};
  const BlockHash parent = RootHash("victim");
  std::string salt(parent.bytes.begin(), parent.bytes.end());
  salt.append(reinterpret_cast<const char*>(tokens.data()),
              tokens.size() * sizeof(TokenId));
  EXPECT_NE(RootHash(salt), NextHash(parent, tokens));
}

}  // namespace
}  // namespace binarymos
