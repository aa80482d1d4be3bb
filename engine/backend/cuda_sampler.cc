#include "engine/backend/cuda_sampler.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/core/check.h"

namespace binarymos {
namespace {

static_assert(DeviceSampler::kMaxLogprobs <= cuda::kMaxTopLogits);
static_assert(sizeof(DeviceSample::Top) == sizeof(cuda::TopLogit) &&
              std::is_standard_layout_v<DeviceSample::Top>);

int NumWords(int vocab_size) { return (vocab_size + 31) / 32; }

template <typename T>
T* As(const Buffer& buffer) {
  return static_cast<T*>(buffer.data());
}

cuda::SampleSlot StateOf(const SequenceInit& init) {
  const SamplingParams& params = *init.sampling;
  return {.temperature = params.temperature,
          .top_k = params.top_k,
          .top_p = params.top_p,
          .min_p = params.min_p,
          .repetition_penalty = params.repetition_penalty,
          .presence_penalty = params.presence_penalty,
          .frequency_penalty = params.frequency_penalty,
          .min_tokens = params.min_tokens,
          .seed = params.seed,
          .sample_index = init.sample_index,
          .num_generated = static_cast<int32_t>(init.output.size()),
          .keeps_history = params.has_penalties() ? 1 : 0,
          .suppresses = params.suppressed_tokens.empty() ? 0 : 1};
}

}  // namespace

absl::Status CudaSampler::Reserve(int max_num_seqs, int max_rows,
                                  int vocab_size) {
  BINARYMOS_CHECK(max_num_seqs_ == 0) << "reserved before";
  BINARYMOS_CHECK(max_num_seqs >= 1 && max_rows >= 1 && vocab_size >= 1 &&
                  vocab_size <= 1 << 20);
  const size_t seqs = max_num_seqs;
  const size_t rows = std::min(max_rows, max_num_seqs);
  const size_t vocab = vocab_size;
  const size_t words = NumWords(vocab_size);
  const size_t result_bytes = seqs * sizeof(cuda::SampleResult);
  const size_t top_bytes = seqs * cuda::kMaxTopLogits * sizeof(cuda::TopLogit);
  const struct {
    Buffer& buffer;
    size_t bytes;
  } on_device[] = {{slots_, seqs * sizeof(cuda::SampleSlot)},
                   {seen_, seqs * vocab * sizeof(int32_t)},
                   {suppressed_, seqs * words * sizeof(uint32_t)},
                   {work_, rows * vocab * sizeof(uint32_t)},
                   {sampled_, seqs * sizeof(int32_t)},
                   {results_, result_bytes},
                   {tops_, top_bytes}};
  size_t total = 0;
  for (const auto& [buffer, bytes] : on_device) total += bytes;
  for (const auto& [buffer, bytes] : on_device) {
    absl::StatusOr<Buffer> memory = driver_.AllocateDevice(bytes);
    if (absl::IsResourceExhausted(memory.status())) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "choosing tokens for ", seqs, " sequences takes ", total,
          " bytes on the device (", seqs, " x ", vocab,
          " tokens x 4 bytes of counts, ", rows, " x ", vocab,
          " x 4 bytes of workspace, and less): ", memory.status().message(),
          "; lower --max-num-seqs"));
    }
    if (!memory.ok()) return memory.status();
    buffer = *std::move(memory);
  }
  for (Step& step : steps_) {
    const struct {
      Buffer& buffer;
      size_t bytes;
    } on_host[] = {{step.results, result_bytes}, {step.tops, top_bytes}};
    for (const auto& [buffer, bytes] : on_host) {
      absl::StatusOr<Buffer> memory = driver_.AllocatePinned(bytes);
      if (!memory.ok()) return memory.status();
      buffer = *std::move(memory);
    }
    step.rows.reserve(seqs);
  }
  samples_.reserve(seqs);
  counts_.resize(vocab);
  max_num_seqs_ = max_num_seqs;
  max_rows_ = static_cast<int>(rows);
  vocab_size_ = vocab_size;
  absl::Status status = row_upload_.Reserve(
      seqs * (sizeof(cuda::SampleRow) + words * sizeof(uint32_t)) + 64,
      driver_);
  status.Update(change_upload_.Reserve(
      seqs * sizeof(cuda::SlotChange) + vocab * sizeof(cuda::SeenToken) + 64,
      driver_));
  return status;
}

void CudaSampler::SetSlot(SlotId slot, const SequenceInit& init) {
  BINARYMOS_CHECK(slot >= 0 && slot < max_num_seqs_) << "slot " << slot;
  // One that came and went without a step.
  std::erase_if(changes_, [&](const cuda::SlotChange& change) {
    return change.slot == slot;
  });
  cuda::SlotChange change{.state = StateOf(init), .slot = slot};
  change.suppressed_begin = static_cast<int32_t>(suppressed_ids_.size());
  for (const TokenId token : init.sampling->suppressed_tokens) {
    // A stop id beyond the vocabulary cannot be sampled anyway.
    if (token >= 0 && token < vocab_size_) suppressed_ids_.push_back(token);
  }
  change.suppressed_end = static_cast<int32_t>(suppressed_ids_.size());

  change.seen_begin = static_cast<int32_t>(seen_tokens_.size());
  if (change.state.keeps_history != 0) {
    const auto see = [&](TokenId token, bool is_output) {
      BINARYMOS_CHECK(token >= 0 && token < vocab_size_) << "token " << token;
      int32_t& count = counts_[token];
      if (count == 0) {
        seen_tokens_.push_back({.token = token});
        count = 1;
      }
      if (is_output) ++count;
    };
    for (const TokenId token : init.prompt) see(token, /*is_output=*/false);
    for (const TokenId token : init.output) see(token, /*is_output=*/true);
    for (size_t i = change.seen_begin; i < seen_tokens_.size(); ++i) {
      seen_tokens_[i].count = std::exchange(counts_[seen_tokens_[i].token], 0);
    }
  }
  change.seen_end = static_cast<int32_t>(seen_tokens_.size());
  changes_.push_back(change);
}

void CudaSampler::UploadChanges() {
  if (changes_.empty()) return;
  size_t changes_at = 0;
  size_t suppressed_at = 0;
  size_t seen_at = 0;
  const CudaUpload::Part parts[] = {
      {std::as_bytes(std::span(changes_)), changes_at},
      {std::as_bytes(std::span(suppressed_ids_)), suppressed_at},
      {std::as_bytes(std::span(seen_tokens_)), seen_at}};
  status_.Update(change_upload_.Copy(parts, driver_));
  if (status_.ok()) {
    status_.Update(driver_.Launch(cuda::SetSlots{
        .changes = change_upload_.At<cuda::SlotChange>(changes_at),
        .num_changes = static_cast<int>(changes_.size()),
        .suppressed_ids = change_upload_.At<int32_t>(suppressed_at),
        .seen_tokens = change_upload_.At<cuda::SeenToken>(seen_at),
        .vocab = vocab_size_,
        .slots = As<cuda::SampleSlot>(slots_),
        .seen = As<int32_t>(seen_),
        .suppressed = As<uint32_t>(suppressed_)}));
  }
  changes_.clear();
  suppressed_ids_.clear();
  seen_tokens_.clear();
}

void CudaSampler::SetRows(std::span<const DeviceSampleRow> rows) {
  BINARYMOS_CHECK_LE(static_cast<int>(rows.size()), max_num_seqs_);
  Step& step = StepAt(num_submitted_);
  step.rows.clear();
  masks_.clear();
  const auto words = static_cast<size_t>(NumWords(vocab_size_));
  for (const DeviceSampleRow& row : rows) {
    BINARYMOS_CHECK(row.slot >= 0 && row.slot < max_num_seqs_);
    BINARYMOS_CHECK_LE(row.num_logprobs, kMaxLogprobs);
    cuda::SampleRow sample{.slot = row.slot,
                           .position = row.position,
                           .logit_row = row.logit_row,
                           .num_top = row.num_logprobs};
    if (!row.allowed_tokens.empty()) {
      BINARYMOS_CHECK_EQ(row.allowed_tokens.size(), words);
      sample.mask = static_cast<int32_t>(masks_.size() / words);
      masks_.insert(masks_.end(), row.allowed_tokens.begin(),
                    row.allowed_tokens.end());
    }
    step.rows.push_back(sample);
  }
  if (!status_.ok()) return;
  UploadChanges();
  const CudaUpload::Part parts[] = {
      {std::as_bytes(std::span(step.rows)), rows_at_},
      {std::as_bytes(std::span(masks_)), masks_at_}};
  if (status_.ok()) status_.Update(row_upload_.Copy(parts, driver_));
}

void CudaSampler::Sample(const ConstTensorView& logits, int first_logit_row,
                         int begin, int end) {
  BINARYMOS_CHECK(logits.device == Device::kCuda &&
                  logits.dtype == DType::kF32 &&
                  logits.shape[1] == vocab_size_);
  const std::vector<cuda::SampleRow>& rows = StepAt(num_submitted_).rows;
  BINARYMOS_CHECK(begin >= 0 && begin <= end && end <= std::ssize(rows) &&
                  end - begin <= max_rows_)
      << "rows " << begin << " to " << end;
  for (int i = begin; i < end; ++i) {
    const int row = rows[i].logit_row - first_logit_row;
    BINARYMOS_CHECK(row >= 0 && row < logits.shape[0]) << "row " << row;
  }
  if (!status_.ok() || begin == end) return;
  status_.Update(driver_.Launch(cuda::Sample{
      .logits = static_cast<const float*>(logits.data),
      .first_logit_row = first_logit_row,
      .num_rows = end - begin,
      .vocab = vocab_size_,
      .rows = row_upload_.At<cuda::SampleRow>(rows_at_) + begin,
      .masks = row_upload_.At<uint32_t>(masks_at_),
      .suppressed = As<uint32_t>(suppressed_),
      .slots = As<cuda::SampleSlot>(slots_),
      .seen = As<int32_t>(seen_),
      .work = As<uint32_t>(work_),
      .sampled = As<int32_t>(sampled_),
      .results = As<cuda::SampleResult>(results_) + begin,
      .tops = As<cuda::TopLogit>(tops_) + begin * cuda::kMaxTopLogits}));
}

void CudaSampler::SubmitStep() {
  const Step& step = StepAt(num_submitted_++);
  const size_t count = step.rows.size();
  if (!status_.ok() || count == 0) return;
  status_.Update(driver_.CopyToHost(step.results.data(), results_.data(),
                                    count * sizeof(cuda::SampleResult)));
  const bool tops =
      std::any_of(step.rows.begin(), step.rows.end(),
                  [](const cuda::SampleRow& row) { return row.num_top > 0; });
  if (!tops || !status_.ok()) return;
  status_.Update(
      driver_.CopyToHost(step.tops.data(), tops_.data(),
                         count * cuda::kMaxTopLogits * sizeof(cuda::TopLogit)));
}

void CudaSampler::TakeStep() {
  Step& step = StepAt(num_taken_++);
  samples_.clear();
  if (!status_.ok()) return;
  const auto* results = As<const cuda::SampleResult>(step.results);
  const auto* tops = As<const DeviceSample::Top>(step.tops);
  for (size_t i = 0; i < step.rows.size(); ++i) {
    const int num_top = std::clamp(step.rows[i].num_top, 0, vocab_size_);
    samples_.push_back({.token = results[i].token,
                        .logit = results[i].logit,
                        .largest = results[i].largest,
                        .total_units = results[i].total_units,
                        .top = {tops + i * cuda::kMaxTopLogits,
                                static_cast<size_t>(num_top)}});
  }
  step.rows.clear();
}

}  // namespace binarymos
