#include "engine/backend/cuda_upload.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace binarymos {
namespace {

constexpr size_t kAlignment = 16;

size_t Align(size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

absl::Status CudaUpload::Copy(std::span<const Part> parts, CudaDriver& driver) {
  size_t total = 0;
  for (const Part& part : parts) {
    part.offset = total;
    total += Align(part.bytes.size());
  }
  if (absl::Status status = Reserve(total, driver); !status.ok()) return status;
  if (total == 0) return absl::OkStatus();
  Buffer& pinned = pinned_[next_];
  next_ = (next_ + 1) % pinned_.size();
  for (const Part& part : parts) {
    if (part.bytes.empty()) continue;
    std::memcpy(static_cast<char*>(pinned.data()) + part.offset,
                part.bytes.data(), part.bytes.size());
  }
  return driver.CopyToDevice(device_.data(), pinned.data(), total);
}

absl::Status CudaUpload::Reserve(size_t bytes, CudaDriver& driver) {
  if (bytes <= device_.bytes()) return absl::OkStatus();
  const size_t size = std::max(bytes, 2 * device_.bytes());
  // A copy may be under way, and kernels that read what it brought.
  if (device_.bytes() > 0) {
    if (absl::Status status = driver.Synchronize(); !status.ok()) return status;
  }
  absl::StatusOr<Buffer> device = driver.AllocateDevice(size);
  if (!device.ok()) return device.status();
  for (Buffer& buffer : pinned_) {
    absl::StatusOr<Buffer> pinned = driver.AllocatePinned(size);
    if (!pinned.ok()) return pinned.status();
    buffer = *std::move(pinned);
  }
  device_ = *std::move(device);
  ++num_moves_;
  return absl::OkStatus();
}

}  // namespace binarymos
