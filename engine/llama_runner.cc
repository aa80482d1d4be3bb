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

// What a DeviceSampler found, as a Sampler reports it.
void Report(const DeviceSample& sample, bool with_logprobs,
            StepResultRow& result) {
  result.token = sample.token;
  result.not_finite = sample.token == kNoToken;
  if (result.not_finite || !with_logprobs) return;
  const LogSoftmax log_softmax(sample.largest, sample.total_units);
  result.logprobs.chosen = {sample.token, log_softmax.Of(sample.logit)};
  for (const DeviceSample::Top& top : sample.top) {
    result.logprobs.top.push_back({top.token, log_softmax.Of(top.logit)});
  }
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
      host_ids_(model.limits().max_logit_rows) {
  const int max_steps = options.max_steps_in_flight;
  BINARYMOS_CHECK(max_steps == 1 ||
                  (max_steps == kMaxSteps && options.sampler != nullptr &&
                   max_steps <= backend.max_steps_in_flight()))
      << max_steps << " steps in flight";
}

LlamaRunner::~LlamaRunner() {
  if (max_steps_in_flight() == 1) return;
  // They use memory that may go away next. Nobody is left to be told of errors.
  for (; num_waited_ < num_submitted_; ++num_waited_) {
    backend_.AwaitStep().IgnoreError();
  }
}

void LlamaRunner::AddSequence(SlotId slot, const SequenceInit& init) {
  if (options_.sampler != nullptr) {
    options_.sampler->SetSlot(slot, init);
  } else {
    sampler_.AddSequence(slot, init);
  }
}

void LlamaRunner::RemoveSequence(SlotId slot) {
  if (options_.sampler == nullptr) sampler_.RemoveSequence(slot);
  sampled_.Clear(slot);
  carried_[slot] = {};
}

void LlamaRunner::SetProgressCallback(std::function<void()> callback) {
  progress_ = std::move(callback);
}

absl::Status LlamaRunner::Submit(const BatchPlan& plan) {
  BINARYMOS_CHECK_LT(num_submitted_ - num_waited_, max_steps_in_flight());
  step_ = &StepAt(num_submitted_);
  step_->start = std::chrono::steady_clock::now();
  CheckPlan(plan);
  const BatchView& batch =
      input_.Build(plan, sampled_, options_.sampler != nullptr);
  StartResult(plan, batch);
  if (absl::Status status = Compute(plan, batch); !status.ok()) return status;
  if (max_steps_in_flight() == 1) {
    if (absl::Status status = Finish(*step_); !status.ok()) return status;
  }
  for (size_t i = 0; i < plan.rows.size(); ++i) {
    const BatchRow& row = plan.rows[i];
    if (!row.sample) continue;
    // With two steps in flight the token is not known, nor asked for.
    sampled_.Set(row.slot, plan.step, step_->result.rows[i].token);
  }
  ++num_submitted_;
  return absl::OkStatus();
}

absl::Status LlamaRunner::Wait(StepResult& result) {
  BINARYMOS_CHECK_LT(num_waited_, num_submitted_);
  Step& step = StepAt(num_waited_++);
  if (max_steps_in_flight() > 1) {
    if (absl::Status status = Finish(step); !status.ok()) return status;
  }
  std::swap(result, step.result);
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
  StepResult& step = step_->result;
  step.step = plan.step;
  step.stats.num_tokens = plan.num_tokens;
  step.stats.num_rows = static_cast<int>(plan.rows.size());
  step.stats.mean_gate.clear();
  step.rows.resize(plan.rows.size());
  plan_rows_.clear();
  for (size_t i = 0; i < plan.rows.size(); ++i) {
    const BatchRow& row = plan.rows[i];
    StepResultRow& result = step.rows[i];
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
  SetDeviceRows(plan);
  const int num_rows = batch.num_logit_rows();
  const int chunk = model_.limits().max_logit_rows;
  for (int begin = 0; begin < num_rows; begin += chunk) {
    const absl::Status status =
        ProcessChunk(plan, batch, begin, std::min(num_rows, begin + chunk));
    if (!status.ok()) return status;
    if (progress_) progress_();
  }
  if (sum_gates && model_.gate_sums()) {
    if (absl::Status status = ReadGates(); !status.ok()) return status;
  }
  step_->not_finite.assign(plan.rows.size(), 0);
  for (size_t i = 0; i < not_finite_.size(); ++i) {
    step_->not_finite[plan_rows_[i]] |= not_finite_[i];
  }
  backend_.SubmitStep();
  return absl::OkStatus();
}

void LlamaRunner::SetDeviceRows(const BatchPlan& plan) {
  step_->device_rows.clear();
  device_rows_.clear();
  next_device_row_ = 0;
  if (options_.sampler == nullptr) return;
  for (size_t i = 0; i < plan.rows.size(); ++i) {
    const BatchRow& row = plan.rows[i];
    if (!row.sample) continue;
    step_->device_rows.push_back({static_cast<int>(i), row.num_logprobs >= 0});
    device_rows_.push_back({.slot = row.slot,
                            .position = row.first_position + row.num_tokens(),
                            .logit_row = input_.logit_ranges()[i].end - 1,
                            .num_logprobs = row.num_logprobs,
                            .allowed_tokens = row.allowed_tokens});
  }
  if (!device_rows_.empty()) options_.sampler->SetRows(device_rows_);
}

absl::Status LlamaRunner::ProcessChunk(const BatchPlan& plan,
                                       const BatchView& batch, int begin,
                                       int end) {
  const ConstTensorView logits = model_.Logits(begin, end);
  if (options_.sampler != nullptr) SampleOnDevice(logits, begin, end);
  if (!HostWants(plan, begin, end)) return absl::OkStatus();
  return options_.sampler == nullptr && OnlyLargestWanted(plan, begin, end)
             ? TakeLargest(plan, logits, begin, end)
             : ProcessLogits(plan, batch, logits, begin, end);
}

void LlamaRunner::SampleOnDevice(const ConstTensorView& logits, int begin,
                                 int end) {
  const size_t first = next_device_row_;
  while (next_device_row_ < device_rows_.size() &&
         device_rows_[next_device_row_].logit_row < end) {
    ++next_device_row_;
  }
  if (first == next_device_row_) return;
  options_.sampler->Sample(logits, begin, static_cast<int>(first),
                           static_cast<int>(next_device_row_));
}

bool LlamaRunner::HostWants(const BatchPlan& plan, int begin, int end) const {
  return options_.sampler == nullptr ||
         std::any_of(plan_rows_.begin() + begin, plan_rows_.begin() + end,
                     [&](int plan_row) {
                       return plan.rows[plan_row].num_prompt_logprobs >= 0;
                     });
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

absl::Status LlamaRunner::TakeLargest(const BatchPlan& plan,
                                      const ConstTensorView& logits, int begin,
                                      int end) {
  const std::span<int32_t> ids(host_ids_.data(), end - begin);
  if (absl::Status status = backend_.ArgMax(logits, ids); !status.ok()) {
    return status;
  }
  for (int i = begin; i < end; ++i) {
    if (ids[i - begin] < 0) {
      not_finite_[i] = 1;
      continue;
    }
    step_->result.rows[plan_rows_[i]].token = ids[i - begin];
    sampler_.AcceptLargest(plan.rows[plan_rows_[i]].slot);
  }
  return absl::OkStatus();
}

absl::Status LlamaRunner::ProcessLogits(const BatchPlan& plan,
                                        const BatchView& batch,
                                        const ConstTensorView& logits,
                                        int begin, int end) {
  const auto vocab = static_cast<size_t>(sampler_.vocab_size());
  const int64_t count = end - begin;
  const std::span<float> host(host_logits_.data(), count * vocab);
  if (absl::Status status = backend_.ReadBack(logits, host); !status.ok()) {
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
  StepResultRow& result = step_->result.rows[plan_row];
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
  if (is_last && row.sample && options_.sampler == nullptr) {
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
  BINARYMOS_CHECK_GE(token, 0) << "a prompt has its tokens, slot " << row.slot;
  if (carried.logits.empty()) return;  // not finite: the request has ended
  ComputeLogprobs(carried.logits, token, row.num_prompt_logprobs, scratch_[0],
                  result.prompt_logprobs[0]);
}

absl::Status LlamaRunner::ReadGates() {
  const ConstTensorView sums = model_.gate_sums();
  std::vector<float>& means = step_->result.stats.mean_gate;
  means.resize(sums.shape.num_elements());
  return backend_.ReadLater(sums, means);
}

absl::Status LlamaRunner::Finish(Step& step) {
  if (absl::Status status = backend_.AwaitStep(); !status.ok()) return status;
  TakeSamples(step);
  for (size_t i = 0; i < step.not_finite.size(); ++i) {
    if (step.not_finite[i] == 0) continue;
    StepResultRow& row = step.result.rows[i];
    row.not_finite = true;
    row.token = kNoToken;
    row.prompt_logprobs.clear();
  }
  StepStats& stats = step.result.stats;
  const float scale = 1.0f / (static_cast<float>(stats.num_tokens) *
                              LlamaModel::kLinearsPerLayer);
  for (float& mean : stats.mean_gate) mean *= scale;
  // A step waits for the one before.
  const auto now = std::chrono::steady_clock::now();
  stats.compute_time = now - std::max(step.start, last_finish_);
  last_finish_ = now;
  return absl::OkStatus();
}

void LlamaRunner::TakeSamples(Step& step) {
  if (step.device_rows.empty()) return;
  const std::span<const DeviceSample> samples = options_.sampler->samples();
  BINARYMOS_CHECK_EQ(samples.size(), step.device_rows.size());
  for (size_t i = 0; i < samples.size(); ++i) {
    const DeviceRow& row = step.device_rows[i];
    Report(samples[i], row.with_logprobs, step.result.rows[row.plan_row]);
  }
}

}  // namespace binarymos
