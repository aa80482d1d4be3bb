#include "engine/llama_runner.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "engine/core/check.h"

namespace binarymos {
namespace {

// Logits to look at before a second thread is worth waking up.
constexpr int64_t kMinParallelLogits = 1 << 16;

// Where the prompt log-probabilities of a row begin, in positions.
int FirstReported(const BatchRow& row) {
  return std::max(1, row.first_position);
}

}  // namespace

LlamaRunner::LlamaRunner(Backend& backend, LlamaModel& model, KvCache& kv_cache,
                         const LlamaRunnerOptions& options)
    : backend_(backend),
      model_(model),
      kv_cache_(kv_cache),
      options_(options),
      input_(model.limits().max_tokens, options.max_num_seqs,
             kv_cache.num_blocks()),
      sampled_(options.max_num_seqs),
      sampler_(model.config().vocab_size, options.max_num_seqs),
      carried_(options.max_num_seqs),
      sampler_threads_(options.num_sampler_threads),
      scratch_(options.num_sampler_threads),
      host_logits_(static_cast<size_t>(model.limits().max_logit_rows) *
                   model.config().vocab_size),
      host_ids_(model.limits().max_logit_rows) {}

void LlamaRunner::AddSequence(SlotId slot, const SequenceInit& init) {
  sampler_.AddSequence(slot, init);
}

void LlamaRunner::RemoveSequence(SlotId slot) {
  sampler_.RemoveSequence(slot);
  sampled_.Clear(slot);
  carried_[slot] = {};
}

void LlamaRunner::SetProgressCallback(std::function<void()> callback) {
  progress_ = std::move(callback);
}

absl::Status LlamaRunner::Submit(const BatchPlan& plan) {
  BINARYMOS_CHECK(!in_flight_);
  const auto start = std::chrono::steady_clock::now();
  CheckPlan(plan);
  const BatchView& batch = input_.Build(plan, sampled_);
  StartResult(plan, batch);
  if (absl::Status status = Compute(plan, batch); !status.ok()) return status;
  FinishResult(plan);
  result_.stats.compute_time = std::chrono::steady_clock::now() - start;
  in_flight_ = true;
  return absl::OkStatus();
}

absl::Status LlamaRunner::Wait(StepResult& result) {
  BINARYMOS_CHECK(in_flight_);
  std::swap(result, result_);
  in_flight_ = false;
  return absl::OkStatus();
}

void LlamaRunner::CheckPlan(const BatchPlan& plan) const {
  BINARYMOS_CHECK(!plan.empty());
  BINARYMOS_CHECK_LE(plan.num_tokens, model_.limits().max_tokens);
  for (const BatchRow& row : plan.rows) {
    BINARYMOS_CHECK(row.slot >= 0 && row.slot < options_.max_num_seqs)
        << "slot " << row.slot;
    BINARYMOS_CHECK_LE(row.first_position + row.num_tokens(),
                       model_.limits().max_model_len)
        << "slot " << row.slot;
    for (TokenId token : row.tokens) {
      BINARYMOS_CHECK(token >= 0 && token < model_.config().vocab_size)
          << "token " << token;
    }
    for (BlockId block : row.block_table) {
      BINARYMOS_CHECK(block >= 0 && block < kv_cache_.num_blocks())
          << "block " << block;
    }
  }
}

void LlamaRunner::StartResult(const BatchPlan& plan, const BatchView& batch) {
  result_.step = plan.step;
  result_.stats.num_tokens = plan.num_tokens;
  result_.stats.num_rows = static_cast<int>(plan.rows.size());
  result_.stats.mean_gate.clear();
  result_.rows.resize(plan.rows.size());
  plan_rows_.clear();
  for (size_t i = 0; i < plan.rows.size(); ++i) {
    const BatchRow& row = plan.rows[i];
    StepResultRow& result = result_.rows[i];
    result.slot = row.slot;
    result.token = kNoToken;
    result.not_finite = false;
    result.logprobs.chosen = {};
    result.logprobs.top.clear();
    const int end = row.first_position + row.num_tokens();
    result.prompt_logprobs.resize(row.num_prompt_logprobs < 0
                                      ? 0
                                      : std::max(0, end - FirstReported(row)));
    if (row.num_prompt_logprobs >= 0 && row.first_position > 0) {
      ReportCarriedPosition(row, batch.tokens[batch.query_starts[i]], result);
    }
    const BatchInput::LogitRange& range = input_.logit_ranges()[i];
    plan_rows_.insert(plan_rows_.end(), range.end - range.begin,
                      static_cast<int>(i));
  }
  not_finite_.assign(plan_rows_.size(), 0);
}

absl::Status LlamaRunner::Compute(const BatchPlan& plan,
                                  const BatchView& batch) {
  const bool sum_gates = options_.gate_sample_interval > 0 &&
                         plan.step % options_.gate_sample_interval == 0;
  backend_.BeginStep(batch);
  model_.Forward(batch, kv_cache_.layers(), sum_gates, progress_);
  const int num_rows = batch.num_logit_rows();
  const int chunk = model_.limits().max_logit_rows;
  for (int begin = 0; begin < num_rows; begin += chunk) {
    const int end = std::min(num_rows, begin + chunk);
    const absl::Status status = OnlyLargestWanted(plan, begin, end)
                                    ? TakeLargest(plan, begin, end)
                                    : ProcessLogits(plan, batch, begin, end);
    if (!status.ok()) return status;
    if (progress_) progress_();
  }
  if (sum_gates && model_.gate_sums()) {
    if (absl::Status status = ReadMeanGate(plan.num_tokens); !status.ok()) {
      return status;
    }
  }
  return backend_.EndStep();
}

bool LlamaRunner::OnlyLargestWanted(const BatchPlan& plan, int begin,
                                    int end) const {
  return std::all_of(
      plan_rows_.begin() + begin, plan_rows_.begin() + end, [&](int plan_row) {
        const BatchRow& row = plan.rows[plan_row];
        return row.sample && row.num_logprobs < 0 &&
               row.num_prompt_logprobs < 0 && row.allowed_tokens.empty() &&
               sampler_.TakesLargest(row.slot);
      });
}

absl::Status LlamaRunner::TakeLargest(const BatchPlan& plan, int begin,
                                      int end) {
  const std::span<int32_t> ids(host_ids_.data(), end - begin);
  if (absl::Status status = backend_.ArgMax(model_.Logits(begin, end), ids);
      !status.ok()) {
    return status;
  }
  for (int i = begin; i < end; ++i) {
    if (ids[i - begin] < 0) {
      not_finite_[i] = 1;
      continue;
    }
    result_.rows[plan_rows_[i]].token = ids[i - begin];
    sampler_.AcceptLargest(plan.rows[plan_rows_[i]].slot);
  }
  return absl::OkStatus();
}

absl::Status LlamaRunner::ProcessLogits(const BatchPlan& plan,
                                        const BatchView& batch, int begin,
                                        int end) {
  const auto vocab = static_cast<size_t>(sampler_.vocab_size());
  const int64_t count = end - begin;
  const std::span<float> host(host_logits_.data(), count * vocab);
  if (absl::Status status = backend_.ReadBack(model_.Logits(begin, end), host);
      !status.ok()) {
    return status;
  }
  const int64_t num_threads =
      count * static_cast<int64_t>(vocab) < kMinParallelLogits
          ? 1
          : sampler_threads_.num_threads();
  const int64_t grain = (count + num_threads - 1) / num_threads;
  sampler_threads_.ParallelFor(count, grain, [&](int64_t from, int64_t to) {
    SamplerScratch& scratch = scratch_[from / grain];
    for (int64_t i = from; i < to; ++i) {
      ProcessLogitRow(plan, batch, begin + static_cast<int>(i),
                      host.subspan(i * vocab, vocab), scratch);
    }
  });
  return absl::OkStatus();
}

// Logits at position p predict the token at p + 1: one of the row's own, or the
// one to sample, or one that the next chunk brings. Each logit row writes its
// own part of the result, so rows may be processed in parallel.
void LlamaRunner::ProcessLogitRow(const BatchPlan& plan, const BatchView& batch,
                                  int logit_row, std::span<const float> logits,
                                  SamplerScratch& scratch) {
  const int plan_row = plan_rows_[logit_row];
  const BatchRow& row = plan.rows[plan_row];
  StepResultRow& result = result_.rows[plan_row];
  const BatchInput::LogitRange& range = input_.logit_ranges()[plan_row];
  const int position = range.first_position + (logit_row - range.begin);
  const bool is_last = logit_row + 1 == range.end;

  if (!AllFinite(logits)) {
    not_finite_[logit_row] = 1;
    if (is_last) carried_[row.slot] = {.position = position};
    return;
  }
  if (row.num_prompt_logprobs >= 0) {
    const int token_row = batch.logit_rows[logit_row];
    if (is_last) {
      CarriedLogits& carried = carried_[row.slot];
      carried.position = position;
      carried.logits.assign(logits.begin(), logits.end());
    } else {
      ComputeLogprobs(
          logits, batch.tokens[token_row + 1], row.num_prompt_logprobs, scratch,
          result.prompt_logprobs[position + 1 - FirstReported(row)]);
    }
  }
  if (is_last && row.sample) {
    sampler_.Sample(
        {row.slot, position + 1, row.num_logprobs, row.allowed_tokens, logits},
        scratch, result);
  }
}

void LlamaRunner::ReportCarriedPosition(const BatchRow& row, TokenId token,
                                        StepResultRow& result) {
  const CarriedLogits& carried = carried_[row.slot];
  BINARYMOS_CHECK_EQ(carried.position, row.first_position - 1)
      << "prompt log-probabilities were not asked for from the start, slot "
      << row.slot;
  if (carried.logits.empty()) return;  // not finite: the request has ended
  ComputeLogprobs(carried.logits, token, row.num_prompt_logprobs, scratch_[0],
                  result.prompt_logprobs[0]);
}

void LlamaRunner::FinishResult(const BatchPlan& plan) {
  for (size_t i = 0; i < not_finite_.size(); ++i) {
    if (not_finite_[i] == 0) continue;
    StepResultRow& result = result_.rows[plan_rows_[i]];
    result.not_finite = true;
    result.token = kNoToken;
    result.prompt_logprobs.clear();
  }
  for (size_t i = 0; i < plan.rows.size(); ++i) {
    const BatchRow& row = plan.rows[i];
    if (row.sample) sampled_.Set(row.slot, plan.step, result_.rows[i].token);
  }
}

absl::Status LlamaRunner::ReadMeanGate(int num_tokens) {
  const ConstTensorView sums = model_.gate_sums();
  std::vector<float>& means = result_.stats.mean_gate;
  means.resize(sums.shape.num_elements());
  if (absl::Status status = backend_.ReadBack(sums, means); !status.ok()) {
    return status;
  }
  const float scale =
      1.0f / (static_cast<float>(num_tokens) * LlamaModel::kLinearsPerLayer);
  for (float& mean : means) mean *= scale;
  return absl::OkStatus();
}

}  // namespace binarymos
