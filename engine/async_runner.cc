#include "engine/async_runner.h"

#include <utility>

#include "engine/core/check.h"

namespace binarymos {

AsyncRunner::AsyncRunner(std::unique_ptr<ModelRunner> runner)
    : runner_(std::move(runner)) {
  runner_->SetProgressCallback([this] {
    MutexLock lock(progress_mutex_);
    if (progress_) progress_();
  });
  thread_ = std::thread([this] { Main(); });
}

AsyncRunner::~AsyncRunner() {
  {
    MutexLock lock(mutex_);
    stop_ = true;
    submitted_.NotifyOne();
  }
  thread_.join();
}

void AsyncRunner::AddSequence(SlotId slot, const SequenceInit& init) {
  changes_.push_back({.slot = slot,
                      .add = true,
                      .sampling = *init.sampling,
                      .sample_index = init.sample_index,
                      .prompt = {init.prompt.begin(), init.prompt.end()},
                      .output = {init.output.begin(), init.output.end()}});
}

void AsyncRunner::RemoveSequence(SlotId slot) {
  changes_.push_back({.slot = slot});
}

absl::Status AsyncRunner::Submit(const BatchPlan& plan) {
  int64_t number = 0;
  {
    MutexLock lock(mutex_);
    number = num_submitted_;
  }
  BINARYMOS_CHECK_LT(number - num_waited_, kMaxStepsInFlight);
  Step& step = StepAt(number);
  step.changes.swap(changes_);
  changes_.clear();
  step.plan.Assign(plan);

  MutexLock lock(mutex_);
  ++num_submitted_;
  submitted_.NotifyOne();
  return absl::OkStatus();
}

absl::Status AsyncRunner::Wait(StepResult& result) {
  {
    MutexLock lock(mutex_);
    BINARYMOS_CHECK_LT(num_waited_, num_submitted_);
    while (num_computed_ <= num_waited_) computed_.Wait(mutex_);
  }
  Step& step = StepAt(num_waited_++);
  if (!step.status.ok()) return step.status;
  std::swap(result, step.result);
  return absl::OkStatus();
}

void AsyncRunner::SetProgressCallback(std::function<void()> callback) {
  MutexLock lock(progress_mutex_);
  progress_ = std::move(callback);
}

void AsyncRunner::Main() {
  for (int64_t number = 0;; ++number) {
    {
      MutexLock lock(mutex_);
      while (num_submitted_ <= number && !stop_) submitted_.Wait(mutex_);
      if (num_submitted_ <= number) return;
    }
    Compute(StepAt(number));

    MutexLock lock(mutex_);
    ++num_computed_;
    computed_.NotifyOne();
  }
}

void AsyncRunner::Compute(Step& step) {
  if (failure_.ok()) {
    for (const SlotChange& change : step.changes) {
      if (change.add) {
        runner_->AddSequence(change.slot, {.sampling = &change.sampling,
                                           .sample_index = change.sample_index,
                                           .prompt = change.prompt,
                                           .output = change.output});
      } else {
        runner_->RemoveSequence(change.slot);
      }
    }
    failure_ = runner_->Submit(step.plan.plan());
  }
  if (failure_.ok()) failure_ = runner_->Wait(step.result);
  step.status = failure_;
}

void AsyncRunner::PlanCopy::Assign(const BatchPlan& plan) {
  plan_ = plan;
  tokens_.clear();
  blocks_.clear();
  masks_.clear();
  for (const BatchRow& row : plan.rows) {
    tokens_.insert(tokens_.end(), row.tokens.begin(), row.tokens.end());
    blocks_.insert(blocks_.end(), row.block_table.begin(),
                   row.block_table.end());
    masks_.insert(masks_.end(), row.allowed_tokens.begin(),
                  row.allowed_tokens.end());
  }
  // Now that nothing moves any more.
  const TokenId* tokens = tokens_.data();
  const BlockId* blocks = blocks_.data();
  const uint32_t* masks = masks_.data();
  for (BatchRow& row : plan_.rows) {
    row.tokens = {std::exchange(tokens, tokens + row.tokens.size()),
                  row.tokens.size()};
    row.block_table = {std::exchange(blocks, blocks + row.block_table.size()),
                       row.block_table.size()};
    row.allowed_tokens = {
        std::exchange(masks, masks + row.allowed_tokens.size()),
        row.allowed_tokens.size()};
  }
}

}  // namespace binarymos
