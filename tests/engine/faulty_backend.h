// A backend that goes wrong where a test asks for it.
#pragma once

#include <limits>
#include <span>

#include "tests/engine/forwarding_backend.h"

namespace binarymos {

class FaultyBackend : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  // The embedding of `poisoned_token` is `poison` in every element.
  TokenId poisoned_token = kNoToken;
  float poison = std::numeric_limits<float>::quiet_NaN();
  // Steps that succeed before the one that does not; below 0: all succeed.
  int fails_after = -1;
  int num_arg_max = 0;  // calls of ArgMax

  void BeginStep(const BatchView& batch) override {
    batch_ = &batch;
    ForwardingBackend::BeginStep(batch);
  }
  void Embed(const PackedLinear& table, const TensorView& out) override {
    ForwardingBackend::Embed(table, out);
    for (int t = 0; t < batch_->num_tokens(); ++t) {
      if (batch_->tokens[t] != poisoned_token) continue;
      for (float& value : out.Row(t).span<float>()) value = poison;
    }
  }
  absl::Status AwaitStep() override {
    const absl::Status status = ForwardingBackend::AwaitStep();
    return fails_after-- == 0 ? absl::UnavailableError("the device is gone")
                              : status;
  }
  absl::Status ArgMax(const ConstTensorView& x,
                      std::span<int32_t> ids) override {
    ++num_arg_max;
    return ForwardingBackend::ArgMax(x, ids);
  }

 private:
  const BatchView* batch_ = nullptr;
};

}  // namespace binarymos
