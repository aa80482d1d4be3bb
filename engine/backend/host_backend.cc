#include "engine/backend/host_backend.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "engine/backend/host_resources.h"
#include "engine/core/buffer.h"
#include "engine/core/check.h"

namespace binarymos {

absl::StatusOr<Tensor> HostBackend::Allocate(DType dtype, Shape shape) {
  const size_t bytes =
      static_cast<size_t>(shape.num_elements()) * SizeOf(dtype);
  absl::StatusOr<Buffer> buffer = Buffer::AllocateHost(bytes);
  if (!buffer.ok()) return buffer.status();
  return Tensor(*std::move(buffer), dtype, shape, Device::kHost);
}

absl::StatusOr<Tensor> HostBackend::Upload(const ConstTensorView& host) {
  BINARYMOS_CHECK(host.device == Device::kHost);
  absl::StatusOr<Tensor> tensor = Allocate(host.dtype, host.shape);
  if (!tensor.ok()) return tensor.status();
  if (host.bytes() > 0) {
    std::memcpy(tensor->view().data, host.data, host.bytes());
  }
  return tensor;
}

absl::StatusOr<size_t> HostBackend::AvailableMemory() const {
  return AvailableHostMemory();
}

void HostBackend::BeginStep(const BatchView& batch) {
  BINARYMOS_CHECK(batch_ == nullptr) << "BeginStep inside a step";
  batch_ = &batch;
  status_ = absl::OkStatus();
}

absl::Status HostBackend::EndStep() {
  BINARYMOS_CHECK(batch_ != nullptr) << "EndStep outside a step";
  batch_ = nullptr;
  return std::exchange(status_, absl::OkStatus());
}

absl::Status HostBackend::ReadBack(const ConstTensorView& tensor,
                                   std::span<float> host) {
  const std::span<const float> values = tensor.span<float>();
  BINARYMOS_CHECK_EQ(values.size(), host.size());
  std::copy(values.begin(), values.end(), host.begin());
  return status_;
}

void HostBackend::Zero(const TensorView& tensor) {
  if (tensor.bytes() > 0) std::memset(tensor.data, 0, tensor.bytes());
}

const BatchView& HostBackend::batch() const {
  BINARYMOS_CHECK(batch_ != nullptr) << "operation outside a step";
  return *batch_;
}

const float* Floats(const ConstTensorView& tensor) {
  BINARYMOS_CHECK(tensor.dtype == DType::kF32) << Name(tensor.dtype);
  return tensor.span<float>().data();
}

float* Floats(const TensorView& tensor) {
  BINARYMOS_CHECK(tensor.dtype == DType::kF32) << Name(tensor.dtype);
  return tensor.span<float>().data();
}

}  // namespace binarymos
