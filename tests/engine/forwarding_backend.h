// A backend that passes everything on to another one, for tests to derive from
// and interfere.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "engine/backend/backend.h"

namespace binarymos {

class ForwardingBackend : public Backend {
 public:
  explicit ForwardingBackend(std::unique_ptr<Backend> inner)
      : inner_(std::move(inner)) {}

  std::string description() const override { return inner_->description(); }
  bool Supports(LinearKind kind) const override {
    return inner_->Supports(kind);
  }
  absl::StatusOr<Tensor> Allocate(DType dtype, Shape shape) override {
    return inner_->Allocate(dtype, shape);
  }
  absl::StatusOr<Tensor> Upload(const ConstTensorView& host) override {
    return inner_->Upload(host);
  }
  absl::StatusOr<std::unique_ptr<PackedLinear>> Pack(
      const LinearTensors& tensors) override {
    return inner_->Pack(tensors);
  }
  absl::StatusOr<size_t> AvailableMemory() const override {
    return inner_->AvailableMemory();
  }
  absl::Status Reserve(int max_tokens, int max_logit_rows) override {
    return inner_->Reserve(max_tokens, max_logit_rows);
  }
  void BeginStep(const BatchView& batch) override { inner_->BeginStep(batch); }
  int max_steps_in_flight() const override {
    return inner_->max_steps_in_flight();
  }
  void SubmitStep() override { inner_->SubmitStep(); }
  absl::Status AwaitStep() override { return inner_->AwaitStep(); }
  absl::Status EndStep() override { return inner_->EndStep(); }
  DeviceSampler* sampler() override { return inner_->sampler(); }
  absl::Status ReadBack(const ConstTensorView& tensor,
                        std::span<float> host) override {
    return inner_->ReadBack(tensor, host);
  }
  absl::Status ReadLater(const ConstTensorView& tensor,
                         std::span<float> host) override {
    return inner_->ReadLater(tensor, host);
  }
  absl::Status ArgMax(const ConstTensorView& x,
                      std::span<int32_t> ids) override {
    return inner_->ArgMax(x, ids);
  }
  void Repeat(const RepeatKey& key,
              absl::FunctionRef<void()> operations) override {
    inner_->Repeat(key, operations);
  }
  void Zero(const TensorView& tensor) override { inner_->Zero(tensor); }
  void Embed(const PackedLinear& table, const TensorView& out) override {
    inner_->Embed(table, out);
  }
  void RmsNorm(const ConstTensorView& x, const ConstTensorView& weight,
               float eps, const TensorView& out) override {
    inner_->RmsNorm(x, weight, eps, out);
  }
  void Linear(const PackedLinear& linear, const ConstTensorView& x,
              Output output, const TensorView& y,
              const TensorView& gate_sums) override {
    inner_->Linear(linear, x, output, y, gate_sums);
  }
  void RopeAndWriteKv(const AttentionShape& shape, const RopeTable& rope,
                      const TensorView& q, const TensorView& k,
                      const ConstTensorView& v, const KvLayer& kv) override {
    inner_->RopeAndWriteKv(shape, rope, q, k, v, kv);
  }
  void Attention(const AttentionShape& shape, const ConstTensorView& q,
                 const KvLayer& kv, const TensorView& out) override {
    inner_->Attention(shape, q, kv, out);
  }
  void SwiGlu(const ConstTensorView& gate, const ConstTensorView& up,
              const TensorView& out) override {
    inner_->SwiGlu(gate, up, out);
  }
  void GatherLogitRows(const ConstTensorView& x,
                       const TensorView& out) override {
    inner_->GatherLogitRows(x, out);
  }

 protected:
  Backend& inner() { return *inner_; }

 private:
  std::unique_ptr<Backend> inner_;
};

}  // namespace binarymos
