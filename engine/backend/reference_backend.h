// The oracle as a backend: every operation in double, activations f32 between
// operations, weights as they stand in the model directory.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "engine/backend/host_backend.h"

namespace binarymos {

// One thread, no blocking, no quantized activations: slow, for comparisons.
class ReferenceBackend : public HostBackend {
 public:
  std::string description() const override { return "cpu (reference)"; }
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
  // Stores token t's heads at its slot of the cache.
  void WriteCache(const AttentionShape& shape, const ConstTensorView& heads,
                  const TensorView& cache) const;
};

}  // namespace binarymos
