// What the backends that compute in host memory have in common.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/backend/backend.h"

namespace binarymos {

// Operations run inside their call. Threads as Backend.
class HostBackend : public Backend {
 public:
  absl::StatusOr<Tensor> Allocate(DType dtype, Shape shape) override;
  absl::StatusOr<Tensor> Upload(const ConstTensorView& host) override;
  absl::StatusOr<size_t> AvailableMemory() const override;

  void BeginStep(const BatchView& batch) override;
  absl::Status EndStep() override;
  absl::Status ReadBack(const ConstTensorView& tensor,
                        std::span<float> host) override;
  absl::Status ArgMax(const ConstTensorView& x,
                      std::span<int32_t> ids) override;
  void Zero(const TensorView& tensor) override;

 protected:
  // REQUIRES: between BeginStep and EndStep.
  const BatchView& batch() const;
  // EndStep reports the first failure of the step.
  void Fail(const absl::Status& status) { status_.Update(status); }

 private:
  const BatchView* batch_ = nullptr;
  absl::Status status_;
};

// The elements of a dense f32 tensor in host memory.
const float* Floats(const ConstTensorView& tensor);
float* Floats(const TensorView& tensor);

}  // namespace binarymos
