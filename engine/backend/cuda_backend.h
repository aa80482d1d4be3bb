// The CUDA backend. Names nothing of CUDA, so that any build can include it,
// and tests run it without a device.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/backend/backend.h"
#include "engine/backend/cuda_batch.h"
#include "engine/backend/cuda_driver.h"
#include "engine/backend/cuda_graphs.h"
#include "engine/backend/cuda_sampler.h"

namespace binarymos {

struct CudaBackendOptions {
  int ordinal = 0;           // of the device, as CUDA counts them
  int activation_bits = 16;  // 8, 12, 14 or 16
  // The part of the device's memory that AvailableMemory counts with.
  double memory_utilization = 0.9;  // more than 0, at most 1
  // Whether Repeat records and replays steps of a token per sequence.
  bool graphs = true;
  // Binary linears of one token in one launch, where the device has clusters.
  bool clusters = true;
  // Kernels begin before the one ahead has ended (engine/kernels/cuda/
  // device_code.h), where the device can.
  bool overlap = true;
  // Binary linears of several rows by the instruction of a warpgroup
  // (engine/kernels/cuda/binary_mos_warpgroup.h), where the device has it.
  bool wgmma = false;
  // Read the device's clock around every step: Backend::device_seconds.
  bool time_steps = false;
  // Binary linears of more than kFastRows rows multiply halves instead of bits:
  // faster, not canonical (engine/kernels/cuda/binary_mos_fast.h). The result
  // of a row then depends on how many rows are computed with it, by that alone.
  // Float16 linears of as many rows are left to cuBLAS where it is installed,
  // activations rounded to halves; note() says where it is not.
  bool fast_linear = false;
};

// As many rows an exact linear computes at least as fast: it reads each sign
// once per 8 rows, a fast one at least 64 outputs for 128 rows whether they are
// there or not (docs/benchmarks/cuda.md). Steps that are recorded have no more.
inline constexpr int64_t kFastRows = 64;

// UNAVAILABLE if there is no such device, if it is too old for the kernels, or
// if CUDA is not built in; the message says which.
absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(
    const CudaBackendOptions& options);

// Enqueues kernels (engine/kernels/cuda) and owns the workspaces between them.
// With equal activation_bits, binary linears, norms, RoPE, SwiGlu and attention
// over a cache in f32 give the bits of CpuBackend, NaN payloads aside. Tensor
// cores compute Float16 linears (lm_head; engine/kernels/cuda/float16_linear.h)
// and attention over a cache in f16 or e4m3 (attention.h there): those are near
// it. What this backend computes for a sequence does not depend, bit for bit,
// on the rest of the batch, on chunks or on recordings; with fast_linear it
// does depend on whether a step has more than kFastRows rows. After a failed
// operation every further one is skipped and EndStep keeps returning the
// failure: a broken device stays broken. Threads as Backend.
class CudaBackend : public Backend {
 public:
  CudaBackend(std::unique_ptr<CudaDriver> driver,
              const CudaBackendOptions& options);
  ~CudaBackend() override;

  std::string description() const override;

  absl::StatusOr<Tensor> Allocate(DType dtype, Shape shape) override;
  absl::StatusOr<Tensor> Upload(const ConstTensorView& host) override;
  absl::StatusOr<std::unique_ptr<PackedLinear>> Pack(
      const LinearTensors& tensors) override;
  // Free memory, less what memory_utilization leaves to others and 64 MiB for
  // what grows later.
  absl::StatusOr<size_t> AvailableMemory() const override;
  absl::Status Reserve(int max_tokens, int max_logit_rows) override;

  int max_steps_in_flight() const override { return kMaxCudaStepsInFlight; }
  void BeginStep(const BatchView& batch) override;
  void SubmitStep() override;
  // Waits for the step's mark only.
  absl::Status AwaitStep() override;
  absl::Status EndStep() override;
  double device_seconds() const override { return device_seconds_; }
  absl::Status ReadBack(const ConstTensorView& tensor,
                        std::span<float> host) override;
  // Waits as ReadBack does for more than 64 KiB, and without Reserve.
  absl::Status ReadLater(const ConstTensorView& tensor,
                         std::span<float> host) override;
  absl::Status ArgMax(const ConstTensorView& x,
                      std::span<int32_t> ids) override;
  DeviceSampler* sampler() override { return &sampler_; }
  void Zero(const TensorView& tensor) override;
  // Records the second step of a shape and replays it from then on, if all
  // sequences have one token and there are at most 64. Memory that is allocated
  // meanwhile ends all recordings. The bits are those of the step without.
  void Repeat(const RepeatKey& key,
              absl::FunctionRef<void()> operations) override;
  // Of the last attempt to record; OK as a rule. A step that cannot be recorded
  // goes on without, and note() says so.
  const absl::Status& graph_status() const { return graph_status_; }

  void Embed(const PackedLinear& table, const TensorView& out) override;
  void RmsNorm(const ConstTensorView& x, const ConstTensorView& weight,
               float eps, const TensorView& out) override;
  void Linear(const PackedLinear& linear, const ConstTensorView& x,
              Output output, const TensorView& y,
              const TensorView& gate_sums) override;
  // One launch each where FusedBinaryMos can compute all of it.
  void Linears(std::span<const LinearTask> tasks,
               const ConstTensorView& x) override;
  void RmsNormAndLinears(const ConstTensorView& x,
                         const ConstTensorView& weight, float eps,
                         const TensorView& normed,
                         std::span<const LinearTask> tasks) override;
  void SwiGluAndLinear(const TensorView& gate, const ConstTensorView& up,
                       const PackedLinear& linear, Output output,
                       const TensorView& y,
                       const TensorView& gate_sums) override;
  void RopeAndWriteKv(const AttentionShape& shape, const RopeTable& rope,
                      const TensorView& q, const TensorView& k,
                      const ConstTensorView& v, const KvLayer& kv) override;
  void Attention(const AttentionShape& shape, const ConstTensorView& q,
                 const KvLayer& kv, const TensorView& out) override;
  // One launch where every sequence has one token.
  void RopeAndAttention(const AttentionShape& shape, const RopeTable& rope,
                        const TensorView& q, const TensorView& k,
                        const ConstTensorView& v, const KvLayer& kv,
                        const TensorView& out) override;
  void SwiGlu(const ConstTensorView& gate, const ConstTensorView& up,
              const TensorView& out) override;
  void GatherLogitRows(const ConstTensorView& x,
                       const TensorView& out) override;

 private:
  class Float16;  // the two kinds of PackedLinear
  class BinaryMos;

  const BatchView& batch() const;
  // The first failure is kept: that of the recording, if there is one.
  void Update(const absl::Status& status) {
    (recording_ ? graph_status_ : status_).Update(status);
  }
  const absl::Status& current_status() const {
    return recording_ ? graph_status_ : status_;
  }
  // Before memory that recordings may name goes away.
  void ForgetGraphs();
  // Whether `operations` ended up in `graph`.
  bool Record(absl::FunctionRef<void()> operations,
              std::unique_ptr<CudaGraph>& graph);
  // Copies from the device and waits; `host` stays as it is upon failure.
  absl::Status CopyBack(const void* device, std::span<std::byte> host);
  // Enqueues `kernel` unless something failed before.
  void Launch(const cuda::Kernel& kernel);

  absl::StatusOr<std::unique_ptr<PackedLinear>> PackFloat16(
      const LinearTensors& tensors);
  absl::StatusOr<std::unique_ptr<PackedLinear>> PackBinaryMos(
      const LinearTensors& tensors);
  absl::StatusOr<Tensor> UploadIfAny(const ConstTensorView& host);
  // Makes room in the workspaces for `rows` rows of the widest layer.
  absl::Status ReserveRows(int64_t rows);
  absl::Status ReserveIds(int64_t rows);

  void RunFloat16(const Float16& linear, const ConstTensorView& x,
                  Output output, const TensorView& y);
  void RunBinaryMos(const BinaryMos& linear, const ConstTensorView& x,
                    Output output, const TensorView& y,
                    const TensorView& gate_sums);
  // Whether FusedBinaryMos can compute the tasks for `rows` rows; then it does,
  // with the input that `args` describes.
  bool RunFused(std::span<const LinearTask> tasks, int64_t rows,
                cuda::FusedArgs args);
  void RunFastFloat16(const Float16& linear, const ConstTensorView& x,
                      Output output, const TensorView& y);
  void RunFastBinaryMos(const BinaryMos& linear, const ConstTensorView& x,
                        Output output, const TensorView& y,
                        const TensorView& gate_sums);
  // Adds the gates of a binary linear, which are in gates_, to `sums` if there
  // is one.
  void SumGates(const BinaryMos& linear, int64_t rows, const TensorView& sums);

  // Attention, with args.new_keys and what goes with it as given.
  void Attend(const AttentionShape& shape, const ConstTensorView& q,
              const KvLayer& kv, const TensorView& out,
              cuda::AttentionArgs args);

  // The batch with its queries in blocks of up to as many tokens.
  const CudaBatch& BatchFor(int tokens_per_block);

  const std::unique_ptr<CudaDriver> driver_;
  const CudaBackendOptions options_;
  absl::Status status_;

  // What ReadLater copies in a step, by way of page-locked memory.
  struct LateRead {
    Buffer pinned;
    std::span<float> host;  // empty: nothing
  };
  LateRead& LateReadAt(int64_t step) {
    return late_reads_[step % kMaxCudaStepsInFlight];
  }

  const BatchView* batch_ = nullptr;
  double device_seconds_ = 0;
  CudaBatch device_batch_;
  CudaSampler sampler_;
  int64_t num_submitted_ = 0;
  int64_t num_awaited_ = 0;
  std::array<LateRead, kMaxCudaStepsInFlight> late_reads_;

  CudaGraphs graphs_;
  int batch_moves_ = 0;  // that graphs_ knows of
  bool recording_ = false;
  absl::Status graph_status_;

  int64_t reserved_rows_ = 0;  // the most that were ever reserved
  // Of the binary linear: as many slices as were ever packed.
  int64_t max_slices_ = 0;
  int max_experts_ = 1;
  Buffer planes_;  // or halves, of fast linears
  Buffer slices_;  // or scales of rows
  Buffer gates_;
  // Of the Float16 linear.
  int64_t max_float16_slices_ = 0;
  Buffer halves_;
  Buffer half_scales_;

  Buffer attention_states_;
  Buffer read_back_;  // page-locked
  Buffer ids_;        // of ArgMax
};

}  // namespace binarymos
