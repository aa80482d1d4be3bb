#include "tests/scheduler/fake_model_runner.h"

#include <algorithm>
#include <chrono>
#include <set>
#include <utility>

#include "gtest/gtest.h"

namespace binarymos {
namespace {

uint64_t Mix(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

bool Contains(const std::vector<TokenId>& tokens, TokenId token) {
  return std::find(tokens.begin(), tokens.end(), token) != tokens.end();
}

}  // namespace

uint64_t FakeState(uint64_t previous, TokenId token) {
  return Mix(previous ^ Mix(static_cast<uint64_t>(token) + 1));
}

TokenId FakeNextToken(uint64_t state, const SamplingParams& sampling,
                      uint32_t sample, int num_output) {
  const uint64_t bits =
      Mix(state ^ Mix(sampling.seed) ^ (uint64_t{sample} << 8));
  auto token = static_cast<TokenId>(bits % kFakeVocabSize);
  while (num_output < sampling.min_tokens &&
         Contains(sampling.suppressed_tokens, token)) {
    token = (token + 1) % kFakeVocabSize;
  }
  return token;
}

float FakeLogprob(uint64_t state, TokenId token) {
  return -static_cast<float>(Mix(state + static_cast<uint64_t>(token)) % 1000) /
         100.0f;
}

ReferenceOutput FakeReference(const Request& request, int sample) {
  uint64_t state = 0;
  for (const TokenId token : request.prompt) state = FakeState(state, token);
  ReferenceOutput output;
  while (static_cast<int>(output.tokens.size()) < request.max_tokens) {
    const int num_output = static_cast<int>(output.tokens.size());
    if (request.sampling.seed == kPoisonedSeed &&
        num_output == kPoisonedOutput) {
      output.reason = FinishReason::kError;
      return output;
    }
    const TokenId token = FakeNextToken(
        state, request.sampling, static_cast<uint32_t>(sample), num_output);
    output.tokens.push_back(token);
    state = FakeState(state, token);
    if (num_output < request.sampling.min_tokens) continue;
    if (Contains(request.eos_tokens, token)) {
      output.reason = FinishReason::kEos;
      return output;
    }
    if (Contains(request.stop_tokens, token)) {
      output.reason = FinishReason::kStopToken;
      return output;
    }
  }
  return output;
}

FakeModelRunner::FakeModelRunner(const CacheConfig& config,
                                 int max_steps_in_flight)
    : config_(config),
      max_steps_in_flight_(max_steps_in_flight),
      cache_(static_cast<size_t>(config.num_blocks * config.block_size)) {}

void FakeModelRunner::FailSubmitAt(StepId step, absl::Status status) {
  fail_submit_at_ = step;
  failure_ = std::move(status);
}

void FakeModelRunner::FailWaitAt(StepId step, absl::Status status) {
  fail_wait_at_ = step;
  failure_ = std::move(status);
}

int FakeModelRunner::num_sequences() const {
  return static_cast<int>(slots_.size());
}

void FakeModelRunner::AddSequence(SlotId slot, const SequenceInit& init) {
  EXPECT_GE(slot, 0);
  EXPECT_LT(slot, config_.max_num_seqs);
  EXPECT_FALSE(slots_.contains(slot)) << "slot " << slot << " is taken";
  Slot& added = slots_[slot];
  added.sampling = *init.sampling;
  added.sample = init.sample_index;
  added.num_prompt = static_cast<int>(init.prompt.size());
  added.tokens.assign(init.prompt.begin(), init.prompt.end());
  added.tokens.insert(added.tokens.end(), init.output.begin(),
                      init.output.end());
}

void FakeModelRunner::RemoveSequence(SlotId slot) {
  EXPECT_TRUE(slots_.contains(slot)) << "slot " << slot << " is free";
  // At depth 1 a step is over when Submit returns.
  if (max_steps_in_flight_ > 1) {
    for (const Step& step : steps_) {
      for (const Row& row : step.rows) {
        EXPECT_NE(row.row.slot, slot) << "taken from step " << step.step;
      }
    }
  }
  slots_.erase(slot);
}

absl::Status FakeModelRunner::Submit(const BatchPlan& plan) {
  EXPECT_LT(num_steps_in_flight(), max_steps_in_flight_);
  if (fail_submit_at_ >= 0 && plan.step >= fail_submit_at_) return failure_;
  CheckPlan(plan);
  last_step_ = plan.step;
  Step& step = steps_.emplace_back();
  step.step = plan.step;
  for (const BatchRow& row : plan.rows) {
    step.rows.push_back(
        {.row = row,
         .tokens = {row.tokens.begin(), row.tokens.end()},
         .block_table = {row.block_table.begin(), row.block_table.end()}});
  }
  if (max_steps_in_flight_ == 1) Compute(step);
  return absl::OkStatus();
}

absl::Status FakeModelRunner::Wait(StepResult& result) {
  EXPECT_FALSE(steps_.empty());
  Step& step = steps_.front();
  if (fail_wait_at_ >= 0 && step.step >= fail_wait_at_) return failure_;
  if (max_steps_in_flight_ > 1) Compute(step);
  result = std::move(step.result);
  steps_.pop_front();
  return absl::OkStatus();
}

void FakeModelRunner::SetProgressCallback(std::function<void()> callback) {
  on_progress_ = std::move(callback);
}

void FakeModelRunner::CheckPlan(const BatchPlan& plan) {
  EXPECT_EQ(plan.step, last_step_ + 1);
  EXPECT_FALSE(plan.rows.empty());
  EXPECT_LE(plan.num_tokens, config_.max_num_batched_tokens);
  int num_tokens = 0;
  std::set<SlotId> slots;
  std::set<BlockId> written;
  for (const BatchRow& row : plan.rows) {
    num_tokens += row.num_tokens();
    EXPECT_GT(row.num_tokens(), 0);
    EXPECT_TRUE(slots_.contains(row.slot)) << "slot " << row.slot;
    EXPECT_TRUE(slots.insert(row.slot).second) << "slot " << row.slot;
    const int end = row.first_position + row.num_tokens();
    EXPECT_LE(end, config_.max_model_len);
    EXPECT_EQ(static_cast<int>(row.block_table.size()),
              (end + config_.block_size - 1) / config_.block_size);
    for (size_t i = 0; i < row.block_table.size(); ++i) {
      const BlockId block = row.block_table[i];
      EXPECT_GE(block, 0);
      EXPECT_LT(block, config_.num_blocks);
      if (static_cast<int>(i) < row.first_position / config_.block_size) {
        continue;
      }
      EXPECT_TRUE(written.insert(block).second) << "written twice: " << block;
      for (const Step& step : steps_) {
        for (const Row& busy : step.rows) {
          if (busy.row.slot == row.slot) continue;
          EXPECT_FALSE(Contains(busy.block_table, block))
              << "block " << block << " taken from step " << step.step;
        }
      }
    }
  }
  EXPECT_EQ(plan.num_tokens, num_tokens);
}

void FakeModelRunner::Compute(Step& step) {
  step.result.step = step.step;
  step.result.rows.resize(step.rows.size());
  for (const Row& row : step.rows) {
    num_tokens_computed_ += row.row.num_tokens();
    WriteRow(row);
  }
  for (size_t i = 0; i < step.rows.size(); ++i) {
    ReadRow(step.rows[i], step.step, step.result.rows[i]);
  }
  step.result.stats.num_rows = static_cast<int>(step.rows.size());
  step.result.stats.compute_time = std::chrono::milliseconds(1);
  if (on_progress_) on_progress_();
}

uint64_t& FakeModelRunner::Cached(const Row& row, int position) {
  const BlockId block =
      row.block_table.at(static_cast<size_t>(position / config_.block_size));
  return cache_.at(static_cast<size_t>(block * config_.block_size +
                                       position % config_.block_size));
}

void FakeModelRunner::WriteRow(const Row& row) {
  Slot& slot = slots_.at(row.row.slot);
  const int first = row.row.first_position;
  const int end = first + row.row.num_tokens();
  if (slot.num_computed) {
    EXPECT_EQ(first, *slot.num_computed) << "slot " << row.row.slot;
  } else {
    EXPECT_EQ(first % config_.block_size, 0) << "only full blocks are shared";
  }
  slot.num_computed = end;
  ASSERT_LE(end, static_cast<int>(slot.tokens.size()));
  if (row.row.token_of_step != kNoStep) {
    EXPECT_EQ(row.row.token_of_step, slot.sampled_in);
    EXPECT_EQ(end, static_cast<int>(slot.tokens.size()));
  } else {
    EXPECT_TRUE(std::equal(row.tokens.begin(), row.tokens.end(),
                           slot.tokens.begin() + first))
        << "slot " << row.row.slot;
  }
  while (static_cast<int>(slot.states.size()) < end) {
    slot.states.push_back(
        FakeState(slot.states.empty() ? 0 : slot.states.back(),
                  slot.tokens[slot.states.size()]));
  }
  for (int position = first; position < end; ++position) {
    Cached(row, position) = slot.states[static_cast<size_t>(position)];
  }
}

void FakeModelRunner::ReadRow(const Row& row, StepId step,
                              StepResultRow& result) {
  Slot& slot = slots_.at(row.row.slot);
  const int first = row.row.first_position;
  const int end = first + row.row.num_tokens();
  for (int position = 0; position < end; ++position) {
    ASSERT_EQ(Cached(row, position), slot.states[static_cast<size_t>(position)])
        << "slot " << row.row.slot << " does not find position " << position
        << " in its blocks";
  }
  result = {};
  result.slot = row.row.slot;
  if (row.row.num_prompt_logprobs >= 0) {
    for (int position = std::max(1, first); position < end; ++position) {
      const TokenId token = slot.tokens[static_cast<size_t>(position)];
      const uint64_t state = slot.states[static_cast<size_t>(position - 1)];
      result.prompt_logprobs.push_back(
          {.chosen = {token, FakeLogprob(state, token)}});
    }
  }
  if (!row.row.sample) return;

  EXPECT_EQ(end, static_cast<int>(slot.tokens.size()));
  const int num_output = end - slot.num_prompt;
  const uint64_t state = Cached(row, end - 1);
  const TokenId token =
      FakeNextToken(state, slot.sampling, slot.sample, num_output);
  slot.tokens.push_back(token);
  slot.sampled_in = step;
  if (slot.sampling.seed == kPoisonedSeed && num_output >= kPoisonedOutput) {
    result.not_finite = true;
    return;
  }
  result.token = token;
  if (row.row.num_logprobs < 0) return;
  result.logprobs.chosen = {token, FakeLogprob(state, token)};
  for (int i = 0; i < row.row.num_logprobs; ++i) {
    result.logprobs.top.push_back({i, FakeLogprob(state, i)});
  }
}

}  // namespace binarymos
