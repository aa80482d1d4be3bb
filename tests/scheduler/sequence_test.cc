#include "scheduler/sequence.h"

#include <memory>
#include <utility>

#include "gtest/gtest.h"

namespace binarymos {
namespace {

Sequence MakeSequence(int max_tokens, Request options = {}) {
  auto request = std::make_shared<Request>(std::move(options));
  request->prompt = {1, 2, 3, 4, 5};
  request->max_tokens = max_tokens;
  return Sequence(std::move(request), 0, 100);
}

TEST(SequenceTest, SamplesWhenItReachesTheEnd) {
  Sequence seq = MakeSequence(8);
  seq.Start(0);
  EXPECT_EQ(seq.num_computable_tokens(), 5);
  EXPECT_FALSE(seq.Advance(3, 0));
  EXPECT_EQ(seq.num_computable_tokens(), 2);
  EXPECT_TRUE(seq.Advance(2, 1));
  EXPECT_EQ(seq.num_pending_tokens(), 1);
}

TEST(SequenceTest, PendingTokenCanBeComputedBeforeItIsKnown) {
  Sequence seq = MakeSequence(8);
  seq.Start(0);
  seq.Advance(5, 7);
  EXPECT_EQ(seq.num_computable_tokens(), 1);
  EXPECT_EQ(seq.pending_step(), 7);
  EXPECT_TRUE(seq.Advance(1, 8));
  EXPECT_EQ(seq.Append(42), std::nullopt);
  EXPECT_EQ(seq.num_pending_tokens(), 1);
  EXPECT_EQ(seq.num_computable_tokens(), 1);
  EXPECT_EQ(seq.pending_step(), 8);
}

TEST(SequenceTest, LastTokenIsNotRunAheadOf) {
  Sequence seq = MakeSequence(1);
  seq.Start(0);
  seq.Advance(5, 0);
  EXPECT_EQ(seq.num_computable_tokens(), 0);
  EXPECT_EQ(seq.Append(42), FinishReason::kLength);
}

TEST(SequenceTest, ModelLengthBoundsTheOutput) {
  auto request = std::make_shared<Request>();
  request->prompt = {1, 2, 3};
  request->max_tokens = 100;
  Sequence seq(std::move(request), 0, 4);
  seq.Start(0);
  seq.Advance(3, 0);
  EXPECT_EQ(seq.Append(42), FinishReason::kLength);
}

TEST(SequenceTest, RestartKeepsKnownAndPendingTokens) {
  Sequence seq = MakeSequence(8);
  seq.Start(0);
  seq.Advance(5, 0);
  seq.Restart();
  EXPECT_EQ(seq.Append(42), std::nullopt);
  seq.Start(4);
  EXPECT_EQ(seq.num_computable_tokens(), 2);
  EXPECT_EQ(seq.output().size(), 1u);
}

TEST(SequenceTest, EosAndStopTokensEndItAfterMinTokens) {
  Request options;
  options.eos_tokens = {2};
  options.stop_tokens = {9};
  options.sampling.min_tokens = 1;
  Sequence seq = MakeSequence(8, options);
  seq.Start(0);
  seq.Advance(5, 0);
  EXPECT_EQ(seq.Append(2), std::nullopt);
  seq.Advance(1, 1);
  EXPECT_EQ(seq.Append(2), FinishReason::kEos);

  Sequence other = MakeSequence(8, options);
  other.Start(0);
  other.Advance(5, 0);
  other.Append(1);
  other.Advance(1, 1);
  EXPECT_EQ(other.Append(9), FinishReason::kStopToken);
}

TEST(SequenceTest, StopAfterEndsItAsAStopString) {
  Sequence seq = MakeSequence(8);
  seq.StopAfter(2);
  seq.Start(0);
  seq.Advance(5, 0);
  EXPECT_EQ(seq.Append(42), std::nullopt);
  seq.Advance(1, 1);
  EXPECT_EQ(seq.num_computable_tokens(), 0);
  EXPECT_EQ(seq.Append(42), FinishReason::kStopString);
}

TEST(SequenceTest, StopAfterMoreThanMaxTokensHasNoEffect) {
  Sequence seq = MakeSequence(1);
  seq.StopAfter(2);
  seq.Start(0);
  seq.Advance(5, 0);
  EXPECT_EQ(seq.Append(42), FinishReason::kLength);
}

}  // namespace
}  // namespace binarymos
