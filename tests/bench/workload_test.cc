#include "bench/workload.h"

#include <algorithm>
#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace binarymos {
namespace {

constexpr int kVocab = 32'000;
constexpr int kBlock = 16;  // what a prefix cache would share

// The first block of each client's prompt.
std::vector<std::vector<TokenId>> FirstBlocks(const Workload& workload) {
  std::vector<std::vector<TokenId>> blocks;
  for (int i = 0; i < workload.streams; ++i) {
    blocks.push_back(PromptTokens(workload, i, kVocab));
    blocks.back().resize(kBlock);
  }
  return blocks;
}

TEST(WorkloadTest, NoTwoSeedsAndNoTwoClientsSharePrompts) {
  std::set<std::vector<TokenId>> seen;
  for (const uint32_t seed : {0u, 1u, 16u, 0xffffffffu}) {
    for (const auto& block :
         FirstBlocks({.streams = 32, .prompt_tokens = 64, .seed = seed})) {
      EXPECT_TRUE(seen.insert(block).second) << "seed " << seed;
    }
  }
}

TEST(WorkloadTest, OneSeedGivesTheSamePromptsAgain) {
  const Workload workload = {.streams = 4, .prompt_tokens = 64, .seed = 7};
  EXPECT_EQ(FirstBlocks(workload), FirstBlocks(workload));
}

TEST(WorkloadTest, PromptsShareTheCommonTokensAndNoMore) {
  const Workload workload = {
      .streams = 2, .prompt_tokens = 64, .common_tokens = 24, .seed = 3};
  const auto first = PromptTokens(workload, 0, kVocab);
  const auto second = PromptTokens(workload, 1, kVocab);
  ASSERT_EQ(first.size(), 64u);
  const auto differ = std::mismatch(first.begin(), first.end(), second.begin());
  EXPECT_EQ(differ.first - first.begin(), 24);
}

TEST(WorkloadTest, TokensAreOrdinaryOnesOfTheVocabulary) {
  for (const TokenId token : PromptTokens({.prompt_tokens = 500}, 0, 20)) {
    EXPECT_GE(token, 3);
    EXPECT_LT(token, 20);
  }
}

}  // namespace
}  // namespace binarymos
