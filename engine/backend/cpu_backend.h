// The CPU backend: vectorised, multi-threaded, canonical arithmetic.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/backend/backend_factory.h"
#include "engine/backend/host_backend.h"
#include "engine/core/thread_pool.h"
#include "engine/kernels/cpu/attention.h"
#include "engine/kernels/cpu/binary_mos_linear.h"
#include "engine/kernels/cpu/cpu_kernels.h"
#include "engine/kernels/cpu/int8_linear.h"
#include "engine/kernels/cpu/parallel.h"

namespace binarymos {

struct CpuBackendOptions {
  ThreadPoolOptions threads;
  const cpu::CpuKernels* kernels = nullptr;  // not null
  cpu::BinaryMosPath binary_mos = cpu::BinaryMosPath::kPortable;
  int activation_bits = 14;  // 8, 12, 14 or 16
};

// Neither threads nor instruction set change a bit of any result. Threads as
// Backend.
class CpuBackend : public HostBackend {
 public:
  // Chooses the kernels that `options` and the machine allow. INVALID_ARGUMENT
  // for an unknown name, UNAVAILABLE for kernels that this CPU cannot run.
  static absl::StatusOr<std::unique_ptr<Backend>> Create(
      const BackendOptions& options);

  explicit CpuBackend(const CpuBackendOptions& options);

  std::string description() const override;
  bool Supports(LinearKind /*kind*/) const override { return true; }
  absl::StatusOr<std::unique_ptr<PackedLinear>> Pack(
      const LinearTensors& tensors) override;
  absl::Status Reserve(int max_tokens, int max_logit_rows) override;

  void Embed(const PackedLinear& table, const TensorView& out) override;
  void RmsNorm(const ConstTensorView& x, const ConstTensorView& weight,
               float eps, const TensorView& out) override;
  void Linear(const PackedLinear& linear, const ConstTensorView& x,
              Output output, const TensorView& y,
              const TensorView& gate_sums) override;
  void RopeAndWriteKv(const AttentionShape& shape, const RopeTable& rope,
                      const TensorView& q, const TensorView& k,
                      const ConstTensorView& v, const KvLayer& kv) override;
  void Attention(const AttentionShape& shape, const ConstTensorView& q,
                 const KvLayer& kv, const TensorView& out) override;
  void SwiGlu(const ConstTensorView& gate, const ConstTensorView& up,
              const TensorView& out) override;
  void GatherLogitRows(const ConstTensorView& x,
                       const TensorView& out) override;

 private:
  cpu::CpuContext context() { return {*options_.kernels, pool_}; }
  absl::StatusOr<std::unique_ptr<PackedLinear>> PackFloat16(
      const LinearTensors& tensors);
  absl::StatusOr<std::unique_ptr<PackedLinear>> PackBinaryMos(
      const LinearTensors& tensors);
  absl::StatusOr<std::unique_ptr<PackedLinear>> PackInt8(
      const LinearTensors& tensors);
  // A part for each thread, so that the memory lies near all of them.
  void CopyInParallel(const ConstTensorView& from, const TensorView& to);
  // Makes room in the workspace for the widest layer packed so far.
  absl::Status ReserveRows(int64_t rows);

  CpuBackendOptions options_;
  ThreadPool pool_;
  cpu::CpuAttention attention_;
  cpu::BinaryMosWorkspace workspace_;
  cpu::Int8Workspace int8_workspace_;
  int64_t reserved_rows_ = 0;
  int64_t max_in_features_ = 0;  // of the binary layers
};

}  // namespace binarymos
