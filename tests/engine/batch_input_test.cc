#include "engine/batch_input.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace binarymos {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class BatchInputTest : public ::testing::Test {
 protected:
  BatchRow& AddRow(const std::vector<TokenId>& tokens, int first_position,
                   const std::vector<BlockId>& blocks) {
    BatchRow row;
    row.slot = static_cast<SlotId>(plan_.rows.size());
    row.tokens = tokens;
    row.first_position = first_position;
    row.block_table = blocks;
    plan_.rows.push_back(row);
    return plan_.rows.back();
  }
  const BatchView& Build() {
    plan_.num_tokens = 0;
    for (const BatchRow& row : plan_.rows) {
      plan_.num_tokens += row.num_tokens();
    }
    return input_.Build(plan_, sampled_);
  }

  BatchPlan plan_;
  SampledTokens sampled_{8};
  BatchInput input_{64, 8, 16};
};

TEST_F(BatchInputTest, FlattensRaggedRows) {
  const std::vector<TokenId> chunk = {10, 11, 12};
  const std::vector<TokenId> newest = {20};
  const std::vector<BlockId> chunk_blocks = {5, 2};
  const std::vector<BlockId> newest_blocks = {0, 1, 7};
  AddRow(chunk, 14, chunk_blocks);
  AddRow(newest, 33, newest_blocks).sample = true;
  const BatchView& batch = Build();
  EXPECT_THAT(batch.tokens, ElementsAre(10, 11, 12, 20));
  EXPECT_THAT(batch.positions, ElementsAre(14, 15, 16, 33));
  EXPECT_THAT(batch.kv_slots,
              ElementsAre(5 * 16 + 14, 5 * 16 + 15, 2 * 16, 7 * 16 + 1));
  EXPECT_THAT(batch.query_starts, ElementsAre(0, 3, 4));
  EXPECT_THAT(batch.context_lens, ElementsAre(17, 34));
  EXPECT_THAT(batch.block_tables, ElementsAre(5, 2, 0, 1, 7));
  EXPECT_THAT(batch.block_table_starts, ElementsAre(0, 2, 5));
  EXPECT_THAT(batch.logit_rows, ElementsAre(3));
  EXPECT_EQ(batch.num_seqs(), 2);
}

TEST_F(BatchInputTest, LeavesOutBlocksThatAreNotNeededYet) {
  const std::vector<TokenId> tokens = {1};
  const std::vector<BlockId> blocks = {4, 5, 6};
  AddRow(tokens, 15, blocks);
  EXPECT_THAT(Build().block_tables, ElementsAre(4));
}

TEST_F(BatchInputTest, PromptLogprobsWantTheLogitsOfEveryToken) {
  const std::vector<TokenId> tokens = {1, 2, 3};
  const std::vector<BlockId> blocks = {0};
  AddRow(tokens, 0, blocks);
  AddRow(tokens, 4, blocks).num_prompt_logprobs = 0;
  AddRow(tokens, 0, blocks).sample = true;
  EXPECT_THAT(Build().logit_rows, ElementsAre(3, 4, 5, 8));
  const auto& ranges = input_.logit_ranges();
  ASSERT_EQ(ranges.size(), 3u);
  EXPECT_EQ(ranges[0].begin, ranges[0].end);
  EXPECT_EQ(ranges[1].begin, 0);
  EXPECT_EQ(ranges[1].end, 3);
  EXPECT_EQ(ranges[1].first_position, 4);
  EXPECT_EQ(ranges[2].begin, 3);
  EXPECT_EQ(ranges[2].end, 4);
  EXPECT_EQ(ranges[2].first_position, 2);
}

TEST_F(BatchInputTest, ResolvesTheTokenOfAnEarlierStep) {
  const std::vector<BlockId> blocks = {3};
  sampled_.Set(0, 41, 77);
  AddRow({}, 6, blocks).token_of_step = 41;
  EXPECT_THAT(Build().tokens, ElementsAre(77));
  EXPECT_THAT(Build().positions, ElementsAre(6));
}

TEST_F(BatchInputTest, ARowAfterAFailedOneStillHasAToken) {
  const std::vector<BlockId> blocks = {3};
  sampled_.Set(0, 41, kNoToken);
  AddRow({}, 6, blocks).token_of_step = 41;
  EXPECT_THAT(Build().tokens, ElementsAre(0));
}

TEST_F(BatchInputTest, ReusesItsMemory) {
  const std::vector<TokenId> tokens = {1, 2, 3};
  const std::vector<BlockId> blocks = {0};
  AddRow(tokens, 0, blocks).sample = true;
  AddRow(tokens, 0, blocks).sample = true;
  const void* data = Build().tokens.data();
  plan_.rows.pop_back();
  const BatchView& batch = Build();
  EXPECT_EQ(batch.tokens.data(), data);
  EXPECT_EQ(batch.num_tokens(), 3);
  EXPECT_THAT(batch.logit_rows, ElementsAre(2));
}

using BatchInputDeathTest = BatchInputTest;

TEST_F(BatchInputDeathTest, ATableThatIsTooShortIsABug) {
  const std::vector<TokenId> tokens = {1, 2};
  const std::vector<BlockId> blocks = {0};
  AddRow(tokens, 15, blocks);
  EXPECT_DEATH(Build(), "slot 0");
}

TEST_F(BatchInputDeathTest, AForgottenStepIsABug) {
  const std::vector<BlockId> blocks = {3};
  sampled_.Set(0, 41, 77);
  AddRow({}, 6, blocks).token_of_step = 40;
  EXPECT_DEATH(Build(), "slot 0");
}

}  // namespace
}  // namespace binarymos
