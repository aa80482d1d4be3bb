// A backend that keeps no weights and computes nothing.
#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/backend/backend.h"

namespace binarymos {

class FakePackedLinear : public PackedLinear {
 public:
  FakePackedLinear(const LinearTensors& tensors, size_t bytes)
      : PackedLinear(tensors.kind, tensors.in_features, tensors.out_features,
                     tensors.gate ? tensors.num_experts : 0),
        bytes_(bytes) {}
  size_t bytes() const override { return bytes_; }

 private:
  size_t bytes_;
};

// Records what was packed. Operations end the process.
class FakeBackend : public Backend {
 public:
  // Memory that Pack and Upload may use in all.
  size_t memory = SIZE_MAX;
  size_t available = SIZE_MAX;  // what it says that it has
  size_t used = 0;
  std::vector<LinearTensors> packed;  // views are valid while the checkpoint is

  std::string description() const override { return "fake"; }

  absl::StatusOr<Tensor> Upload(const ConstTensorView& host) override {
    if (auto status = Use(host.bytes()); !status.ok()) return status;
    absl::StatusOr<Buffer> buffer = Buffer::AllocateHost(host.bytes());
    if (!buffer.ok()) return buffer.status();
    std::memcpy(buffer->data(), host.data, host.bytes());
    return Tensor(*std::move(buffer), host.dtype, host.shape, Device::kHost);
  }
  absl::StatusOr<std::unique_ptr<PackedLinear>> Pack(
      const LinearTensors& tensors) override {
    size_t bytes = 0;
    for (const ConstTensorView& view :
         {tensors.weight, tensors.sign, tensors.gate, tensors.in_scale,
          tensors.out_scale, tensors.bias}) {
      if (view) bytes += view.bytes();
    }
    if (auto status = Use(bytes); !status.ok()) return status;
    packed.push_back(tensors);
    return std::make_unique<FakePackedLinear>(tensors, bytes);
  }

  absl::StatusOr<Tensor> Allocate(DType, Shape) override { return Die(); }
  absl::StatusOr<size_t> AvailableMemory() const override { return available; }
  absl::Status Reserve(int, int) override { return Die(); }
  void BeginStep(const BatchView&) override { (void)Die(); }
  absl::Status EndStep() override { return Die(); }
  absl::Status ReadBack(const ConstTensorView&, std::span<float>) override {
    return Die();
  }
  absl::Status ArgMax(const ConstTensorView&, std::span<int32_t>) override {
    return Die();
  }
  void Zero(const TensorView&) override { (void)Die(); }
  void Embed(const PackedLinear&, const TensorView&) override { (void)Die(); }
  void RmsNorm(const ConstTensorView&, const ConstTensorView&, float,
               const TensorView&) override {
    (void)Die();
  }
  void Linear(const PackedLinear&, const ConstTensorView&, Output,
              const TensorView&, const TensorView&) override {
    (void)Die();
  }
  void RopeAndWriteKv(const AttentionShape&, const RopeTable&,
                      const TensorView&, const TensorView&,
                      const ConstTensorView&, const KvLayer&) override {
    (void)Die();
  }
  void Attention(const AttentionShape&, const ConstTensorView&, const KvLayer&,
                 const TensorView&) override {
    (void)Die();
  }
  void SwiGlu(const ConstTensorView&, const ConstTensorView&,
              const TensorView&) override {
    (void)Die();
  }
  void GatherLogitRows(const ConstTensorView&, const TensorView&) override {
    (void)Die();
  }

 private:
  absl::Status Use(size_t bytes) {
    if (bytes > memory - used) {
      return absl::ResourceExhaustedError("the fake is full");
    }
    used += bytes;
    return absl::OkStatus();
  }
  static absl::Status Die() {
    BINARYMOS_CHECK(false) << "loading does not compute";
    return absl::OkStatus();
  }
};

}  // namespace binarymos
