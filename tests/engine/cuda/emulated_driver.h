// A CUDA device made of host memory, whose kernels run on the CPU
// (emulated_block.h) and which fails on demand.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <variant>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/backend/cuda_driver.h"
#include "tests/engine/cuda/emulated_block.h"

namespace binarymos {

// Outlives the driver that fills it in.
struct EmulatedDevice {
  // Set by the test.
  size_t total_memory = size_t{4} << 30;
  int num_sms = 132;
  size_t max_shared_bytes = 227 << 10;
  EmulatedOrder order = EmulatedOrder::kAscending;
  int launches_until_failure = -1;  // -1: never; then every call fails

  // Set by the driver.
  size_t used_memory = 0;
  int num_allocations = 0;  // ever
  int num_launches = 0;
  int num_merges = 0;  // of attention splits
};

// Runs everything inside its call, which is one of the orders that a stream may
// take. Memory starts as garbage; nothing is readable past its end (under
// AddressSanitizer).
class EmulatedDriver : public CudaDriver {
 public:
  explicit EmulatedDriver(EmulatedDevice* device) : device_(device) {
    info_.name = "emulated";
    info_.compute_major = 9;
    info_.num_sms = device->num_sms;
    info_.max_shared_bytes = device->max_shared_bytes;
  }

  const CudaDeviceInfo& info() const override { return info_; }
  absl::StatusOr<CudaMemory> Memory() const override {
    return CudaMemory{device_->total_memory - device_->used_memory,
                      device_->total_memory};
  }

  absl::StatusOr<Buffer> AllocateDevice(size_t bytes) override {
    if (bytes > device_->total_memory - device_->used_memory) {
      return absl::ResourceExhaustedError(
          absl::StrCat("cannot allocate ", bytes, " bytes of device memory"));
    }
    ++device_->num_allocations;
    device_->used_memory += bytes;
    return Garbage(bytes);
  }
  absl::StatusOr<Buffer> AllocatePinned(size_t bytes) override {
    ++device_->num_allocations;
    return Garbage(bytes);
  }

  absl::Status CopyToDevice(void* to, const void* from, size_t bytes) override {
    std::memcpy(to, from, bytes);
    return Health();
  }
  absl::Status CopyToHost(void* to, const void* from, size_t bytes) override {
    std::memcpy(to, from, bytes);
    return Health();
  }
  absl::Status Zero(void* to, size_t bytes) override {
    std::memset(to, 0, bytes);
    return Health();
  }
  absl::Status Launch(const cuda::Kernel& kernel) override {
    ++device_->num_launches;
    if (device_->launches_until_failure > 0) --device_->launches_until_failure;
    if (absl::Status status = Health(); !status.ok()) return status;
    device_->num_merges +=
        std::holds_alternative<cuda::MergeAttention>(kernel) ? 1 : 0;
    std::visit([this](const auto& one) { RunEmulated(one, device_->order); },
               kernel);
    return absl::OkStatus();
  }
  absl::Status Synchronize() override { return Health(); }

 private:
  absl::Status Health() const {
    if (device_->launches_until_failure != 0) return absl::OkStatus();
    return absl::InternalError(
        "CUDA: an illegal memory access was encountered");
  }

  // Not returned to used_memory: loading allocates once.
  static absl::StatusOr<Buffer> Garbage(size_t bytes) {
    void* data = std::malloc(bytes + 1);
    std::memset(data, 0xff, bytes);
    return Buffer(data, bytes, [](void* p, size_t) { std::free(p); });
  }

  EmulatedDevice* device_;
  CudaDeviceInfo info_;
};

}  // namespace binarymos
