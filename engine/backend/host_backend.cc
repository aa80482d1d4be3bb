#include "engine/backend/host_backend.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "engine/backend/host_resources.h"
#include "engine/core/buffer.h"
#include "engine/core/check.h"

namespace binarymos {
namespace {

// As Backend::ArgMax. Floats are compared as integers in the same order, which
// the compiler turns into vector code, a block at a time; only the block of the
// largest is searched for it.
int32_t LargestOf(std::span<const float> row) {
  constexpr size_t kBlock = 256;
  constexpr int32_t kExponent = 0x7f800000;
  const auto ordered = [](float value) {
    const auto bits = std::bit_cast<int32_t>(value + 0.0f);  // no -0
    return bits ^ ((bits >> 31) & std::numeric_limits<int32_t>::max());
  };
  int32_t best = std::numeric_limits<int32_t>::min();
  size_t best_block = 0;
  int32_t bad = 0;
  for (size_t begin = 0; begin < row.size(); begin += kBlock) {
    const size_t size = std::min(kBlock, row.size() - begin);
    int32_t largest = std::numeric_limits<int32_t>::min();
    for (const float value : row.subspan(begin, size)) {
      const int32_t exponent = std::bit_cast<int32_t>(value) & kExponent;
      bad |= exponent == kExponent ? 1 : 0;
      const int32_t candidate = ordered(value);
      largest = candidate > largest ? candidate : largest;
    }
    if (largest > best) {
      best = largest;
      best_block = begin;
    }
  }
  if (bad != 0 || row.empty()) return -1;
  size_t index = best_block;
  while (ordered(row[index]) != best) ++index;
  return static_cast<int32_t>(index);
}

}  // namespace

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

absl::Status HostBackend::ArgMax(const ConstTensorView& x,
                                 std::span<int32_t> ids) {
  const std::span<const float> values = x.span<float>();
  const auto width = static_cast<size_t>(x.shape[1]);
  BINARYMOS_CHECK_EQ(values.size(), ids.size() * width);
  for (size_t r = 0; r < ids.size(); ++r) {
    ids[r] = LargestOf(values.subspan(r * width, width));
  }
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
