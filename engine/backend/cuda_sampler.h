// Sampling on a CUDA device: engine/kernels/cuda/sample.h and what it needs.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "engine/backend/cuda_driver.h"
#include "engine/backend/cuda_upload.h"
#include "engine/backend/device_sampler.h"
#include "engine/core/buffer.h"

namespace binarymos {

// Part of CudaBackend, whose driver and status it shares: after a failure
// nothing more is enqueued. On the device it holds 4 bytes per slot and token
// for histories and 4 per row and token for a workspace: with 32,000 tokens and
// 131 rows 17 MB for 64 slots, 152 MB for 1,024. A step costs it a copy to the
// device, a launch and a copy back; new sequences a copy and a launch more.
class CudaSampler : public DeviceSampler {
 public:
  CudaSampler(CudaDriver& driver, absl::Status& status)
      : driver_(driver), status_(status) {}

  absl::Status Reserve(int max_num_seqs, int max_rows, int vocab_size) override;
  void SetSlot(SlotId slot, const SequenceInit& init) override;
  void SetRows(std::span<const DeviceSampleRow> rows) override;
  void Sample(const ConstTensorView& logits, int first_logit_row, int begin,
              int end) override;
  std::span<const DeviceSample> samples() const override { return samples_; }

  int max_num_seqs() const { return max_num_seqs_; }  // 0: not reserved
  // Device memory: a slot's newest token. [max_num_seqs]
  const int32_t* sampled() const {
    return static_cast<const int32_t*>(sampled_.data());
  }

  // Enqueues the copy of the step's results.
  void SubmitStep();
  // Of the oldest step that was submitted, whose copies have run.
  void TakeStep();

 private:
  // A step's rows, and its results in page-locked memory.
  struct Step {
    std::vector<cuda::SampleRow> rows;
    Buffer results;  // [max_num_seqs] SampleResult
    Buffer tops;     // [max_num_seqs, kMaxTopLogits] TopLogit
  };
  Step& StepAt(int64_t number) { return steps_[number % steps_.size()]; }
  void UploadChanges();

  CudaDriver& driver_;
  absl::Status& status_;
  int max_num_seqs_ = 0;
  int max_rows_ = 0;
  int vocab_size_ = 0;

  // Device memory.
  Buffer slots_;       // [max_num_seqs] SampleSlot
  Buffer seen_;        // [max_num_seqs, vocab] i32
  Buffer suppressed_;  // [max_num_seqs, ceil(vocab / 32)] u32
  Buffer work_;        // [max_rows, vocab] u32
  Buffer sampled_;     // [max_num_seqs] i32
  Buffer results_;     // [max_num_seqs] SampleResult
  Buffer tops_;        // [max_num_seqs, kMaxTopLogits] TopLogit

  // Sequences that came since the last SetRows.
  std::vector<cuda::SlotChange> changes_;
  std::vector<int32_t> suppressed_ids_;
  std::vector<cuda::SeenToken> seen_tokens_;
  CudaUpload change_upload_;
  std::vector<int32_t> counts_;  // [vocab] zeros, but while counting

  std::vector<uint32_t> masks_;
  CudaUpload row_upload_;
  size_t rows_at_ = 0;
  size_t masks_at_ = 0;

  std::array<Step, kMaxCudaStepsInFlight> steps_;
  int64_t num_submitted_ = 0;
  int64_t num_taken_ = 0;
  std::vector<DeviceSample> samples_;
};

}  // namespace binarymos
