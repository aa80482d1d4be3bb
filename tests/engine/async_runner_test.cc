#include "engine/async_runner.h"

#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace binarymos {
namespace {

using ::testing::ElementsAre;

// Writes down what it is told. Belongs to the thread that calls it.
class RecordingRunner : public ModelRunner {
 public:
  RecordingRunner(std::vector<std::string>& log, StepId fails_at,
                  std::atomic<bool>& may_compute)
      : log_(log), fails_at_(fails_at), may_compute_(may_compute) {}

  int max_steps_in_flight() const override { return 1; }
  void AddSequence(SlotId slot, const SequenceInit& init) override {
    log_.push_back(absl::StrCat("add ", slot, " seed ", init.sampling->seed,
                                " prompt ", init.prompt[0], " output ",
                                init.output.size()));
  }
  void RemoveSequence(SlotId slot) override {
    log_.push_back(absl::StrCat("remove ", slot));
  }
  absl::Status Submit(const BatchPlan& plan) override {
    may_compute_.wait(false);
    if (progress_) progress_();
    std::string line = absl::StrCat("step ", plan.step);
    for (const BatchRow& row : plan.rows) {
      absl::StrAppend(&line, " [", row.slot);
      for (const TokenId token : row.tokens) absl::StrAppend(&line, " ", token);
      if (row.token_of_step != kNoStep) {
        absl::StrAppend(&line, " of ", row.token_of_step);
      }
      for (const BlockId block : row.block_table) {
        absl::StrAppend(&line, " b", block);
      }
      for (const uint32_t mask : row.allowed_tokens) {
        absl::StrAppend(&line, " m", mask);
      }
      absl::StrAppend(&line, "]");
    }
    log_.push_back(std::move(line));
    step_ = plan.step;
    return plan.step == fails_at_ ? absl::UnavailableError("gone")
                                  : absl::OkStatus();
  }
  absl::Status Wait(StepResult& result) override {
    result.step = step_;
    return absl::OkStatus();
  }
  void SetProgressCallback(std::function<void()> callback) override {
    progress_ = std::move(callback);
  }

 private:
  std::vector<std::string>& log_;
  const StepId fails_at_;
  std::atomic<bool>& may_compute_;
  StepId step_ = kNoStep;
  std::function<void()> progress_;
};

class AsyncRunnerTest : public ::testing::Test {
 protected:
  void Start(StepId fails_at = kNoStep) {
    runner_ = std::make_unique<AsyncRunner>(
        std::make_unique<RecordingRunner>(log_, fails_at, may_compute_));
  }
  void Hold() { may_compute_ = false; }
  void Go() {
    may_compute_ = true;
    may_compute_.notify_all();
  }

  // Of one row in slot 3.
  absl::Status Submit(StepId step, StepId token_of_step = kNoStep) {
    std::vector<TokenId> tokens = {5, 6};
    std::vector<BlockId> blocks = {7};
    std::vector<uint32_t> mask = {8};
    BatchPlan plan;
    plan.step = step;
    plan.rows.resize(1);
    plan.rows[0].slot = 3;
    plan.rows[0].token_of_step = token_of_step;
    if (token_of_step == kNoStep) plan.rows[0].tokens = tokens;
    plan.rows[0].block_table = blocks;
    plan.rows[0].allowed_tokens = mask;
    plan.num_tokens = plan.rows[0].num_tokens();
    absl::Status status = runner_->Submit(plan);
    tokens = {0, 0};  // the caller's again
    blocks = {0};
    mask = {0};
    return status;
  }

  std::vector<std::string> log_;  // of the thread, until the runner is gone
  std::atomic<bool> may_compute_{true};
  std::unique_ptr<AsyncRunner> runner_;
};

TEST_F(AsyncRunnerTest, ComputesInTheOrderOfTheCalls) {
  Start();
  Hold();
  {
    SamplingParams sampling{.seed = 9};
    std::vector<TokenId> prompt = {5, 6};
    runner_->AddSequence(3, {.sampling = &sampling, .prompt = prompt});
    sampling.seed = 0;  // the caller's again
    prompt[0] = 0;
  }
  ASSERT_TRUE(Submit(0).ok());
  ASSERT_TRUE(Submit(1, /*token_of_step=*/0).ok());
  Go();
  StepResult result;
  ASSERT_TRUE(runner_->Wait(result).ok());
  EXPECT_EQ(result.step, 0);
  runner_->RemoveSequence(3);
  ASSERT_TRUE(Submit(2).ok());
  for (const StepId step : {1, 2}) {
    ASSERT_TRUE(runner_->Wait(result).ok());
    EXPECT_EQ(result.step, step);
  }
  runner_.reset();
  EXPECT_THAT(log_, ElementsAre("add 3 seed 9 prompt 5 output 0",
                                "step 0 [3 5 6 b7 m8]", "step 1 [3 of 0 b7 m8]",
                                "remove 3", "step 2 [3 5 6 b7 m8]"));
}

TEST_F(AsyncRunnerTest, SubmitDoesNotWaitForTheStepAhead) {
  Start();
  Hold();
  ASSERT_TRUE(Submit(0).ok());
  ASSERT_TRUE(Submit(1).ok());  // returns, though nothing can be computed
  Go();
  runner_.reset();
  EXPECT_EQ(log_.size(), 2u);
}

TEST_F(AsyncRunnerTest, ErrorIsToldByItsWaitAndByThoseBehindIt) {
  Start(/*fails_at=*/1);
  ASSERT_TRUE(Submit(0).ok());
  ASSERT_TRUE(Submit(1).ok());
  StepResult result;
  EXPECT_TRUE(runner_->Wait(result).ok());
  ASSERT_TRUE(Submit(2).ok());
  EXPECT_EQ(runner_->Wait(result).message(), "gone");
  EXPECT_EQ(runner_->Wait(result).message(), "gone");
  runner_.reset();
  EXPECT_EQ(log_.size(), 2u) << "a step behind the error was computed";
}

TEST_F(AsyncRunnerTest, ProgressIsReportedToTheNewestCallbackOnly) {
  Start();
  std::atomic<int> before = 0;
  std::atomic<int> after = 0;
  runner_->SetProgressCallback([&] { ++before; });
  ASSERT_TRUE(Submit(0).ok());
  StepResult result;
  ASSERT_TRUE(runner_->Wait(result).ok());
  runner_->SetProgressCallback([&] { ++after; });
  ASSERT_TRUE(Submit(1).ok());
  ASSERT_TRUE(runner_->Wait(result).ok());
  EXPECT_EQ(before, 1);
  EXPECT_EQ(after, 1);
}

using AsyncRunnerDeathTest = AsyncRunnerTest;
TEST_F(AsyncRunnerDeathTest, ThirdStepInFlightIsABug) {
  Start();
  ASSERT_TRUE(Submit(0).ok());
  ASSERT_TRUE(Submit(1).ok());
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH((void)Submit(2), "");
}

}  // namespace
}  // namespace binarymos
