// A CUDA device made of host memory, whose kernels run on the CPU
// (emulated_block.h) and which fails on demand.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/backend/cuda_driver.h"
#include "engine/core/float16.h"
#include "tests/engine/cuda/emulated_block.h"

namespace binarymos {

// Outlives the driver that fills it in.
struct EmulatedDevice {
  // Set by the test.
  size_t total_memory = size_t{4} << 30;
  int num_sms = 132;
  size_t max_shared_bytes = 227 << 10;
  int max_clusters = 2;
  bool has_wgmma = true;
  EmulatedOrder order = EmulatedOrder::kAscending;
  int launches_until_failure = -1;  // -1: never; then every call fails
  bool refuse_capture = false;
  bool can_multiply = false;

  // Set by the driver.
  size_t used_memory = 0;
  int num_allocations = 0;  // ever
  int num_launches = 0;
  int num_products = 0;
  int num_merges = 0;  // of attention splits
  int num_fast_linears = 0;
  int num_warpgroup_linears = 0;
  int rows_of_fast_block = 0;  // of the last
  int num_captures = 0;
  int num_replays = 0;
  int num_copies_to_device = 0;
  int num_waits = 0;
};

// What was captured, in order.
struct EmulatedGraph : CudaGraph {
  struct Zero {
    void* to;
    size_t bytes;
  };
  std::vector<std::variant<cuda::Kernel, Zero>> operations;
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
    info_.max_clusters = device->max_clusters;
    info_.has_wgmma = device->has_wgmma;
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
    Spoil("an allocation").IgnoreError();
    return Garbage(bytes);
  }
  absl::StatusOr<Buffer> AllocatePinned(size_t bytes) override {
    ++device_->num_allocations;
    Spoil("an allocation").IgnoreError();
    return Garbage(bytes);
  }

  absl::Status CopyToDevice(void* to, const void* from, size_t bytes) override {
    if (capture_ != nullptr) return Spoil("a copy");
    ++device_->num_copies_to_device;
    std::memcpy(to, from, bytes);
    return Health();
  }
  absl::Status CopyToHost(void* to, const void* from, size_t bytes) override {
    if (capture_ != nullptr) return Spoil("a copy");
    std::memcpy(to, from, bytes);
    return Health();
  }
  absl::Status Zero(void* to, size_t bytes) override {
    if (capture_ != nullptr) {
      capture_->operations.push_back(EmulatedGraph::Zero{to, bytes});
      return Health();
    }
    std::memset(to, 0, bytes);
    return Health();
  }
  absl::Status Launch(const cuda::Kernel& kernel) override {
    ++device_->num_launches;
    if (device_->launches_until_failure > 0) --device_->launches_until_failure;
    if (absl::Status status = Health(); !status.ok()) return status;
    if (capture_ != nullptr) {
      capture_->operations.push_back(kernel);
      return absl::OkStatus();
    }
    Run(kernel);
    return absl::OkStatus();
  }
  bool can_multiply() const override { return device_->can_multiply; }
  absl::Status Multiply(const HalfProduct& product) override {
    if (capture_ != nullptr) return Spoil("a product");
    ++device_->num_products;
    const auto* x = static_cast<const uint16_t*>(product.x);
    const auto* weight = static_cast<const uint16_t*>(product.weight);
    auto* y = static_cast<float*>(product.y);
    for (int64_t row = 0; row < product.rows; ++row) {
      for (int64_t column = 0; column < product.out; ++column) {
        double sum = 0;
        for (int64_t k = 0; k < product.in; ++k) {
          sum += double{HalfToFloat(x[row * product.in + k])} *
                 HalfToFloat(weight[column * product.in + k]);
        }
        float& to = y[row * product.out + column];
        to = static_cast<float>(product.accumulate ? to + sum : sum);
      }
    }
    return Health();
  }
  absl::Status Synchronize() override {
    if (capture_ != nullptr) return Spoil("waiting");
    ++device_->num_waits;
    return Health();
  }

  // Its clock counts kernels that ran, a microsecond each.
  absl::Status StartTimer() override {
    if (capture_ != nullptr) return Spoil("a timer");
    ran_at_start_ = num_ran_;
    return Health();
  }
  absl::Status StopTimer() override {
    if (capture_ != nullptr) return Spoil("a timer");
    ran_at_stop_ = num_ran_;
    return Health();
  }
  absl::StatusOr<double> TimerSeconds() override {
    return 1e-6 * (ran_at_stop_ - ran_at_start_);
  }

  absl::Status BeginCapture() override {
    ++device_->num_captures;
    if (device_->refuse_capture) {
      return absl::InternalError("CUDA: operation not permitted");
    }
    spoilt_ = absl::OkStatus();
    capture_ = std::make_unique<EmulatedGraph>();
    return Health();
  }
  absl::StatusOr<std::unique_ptr<CudaGraph>> EndCapture() override {
    std::unique_ptr<EmulatedGraph> graph = std::move(capture_);
    if (!spoilt_.ok()) return spoilt_;
    return graph;
  }
  absl::Status Replay(CudaGraph& graph) override {
    ++device_->num_replays;
    if (capture_ != nullptr) return Spoil("a replay");
    if (absl::Status status = Health(); !status.ok()) return status;
    for (const auto& operation :
         static_cast<EmulatedGraph&>(graph).operations) {
      if (const auto* zero = std::get_if<EmulatedGraph::Zero>(&operation)) {
        std::memset(zero->to, 0, zero->bytes);
      } else {
        Run(std::get<cuda::Kernel>(operation));
      }
    }
    return absl::OkStatus();
  }

 private:
  void Run(const cuda::Kernel& kernel) {
    ++num_ran_;
    device_->num_merges +=
        std::holds_alternative<cuda::MergeAttention>(kernel) ? 1 : 0;
    std::visit(
        [this](const auto& one) {
          Note(one);
          RunEmulated(one, device_->order);
        },
        kernel);
  }
  template <typename K>
  void Note(const K&) {}
  template <int kPlanes, int kParts>
  void Note(const cuda::WarpgroupBinaryMos<kPlanes, kParts>&) {
    ++device_->num_warpgroup_linears;
  }
  template <int kTiles, int kRowWarps>
  void Note(const cuda::FastBinaryMos<kTiles, kRowWarps>& kernel) {
    ++device_->num_fast_linears;
    device_->rows_of_fast_block = kernel.kRows;
  }

  // During a capture this operation is an error, as CUDA has it.
  absl::Status Spoil(const char* what) {
    if (capture_ == nullptr) return absl::OkStatus();
    spoilt_.Update(absl::InternalError(
        absl::StrCat("CUDA: ", what, " during a stream capture")));
    return spoilt_;
  }

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
  std::unique_ptr<EmulatedGraph> capture_;  // null: not capturing
  absl::Status spoilt_;
  int num_ran_ = 0;  // kernels
  int ran_at_start_ = 0;
  int ran_at_stop_ = 0;
};

}  // namespace binarymos
