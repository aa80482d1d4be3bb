// A CUDA device made of host memory, whose kernels run on the CPU
// (emulated_block.h) and which fails on demand.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

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
  int max_clusters = 2;
  bool has_wgmma = true;
  EmulatedOrder order = EmulatedOrder::kAscending;
  int launches_until_failure = -1;  // -1: never; then every call fails
  bool refuse_capture = false;
  bool can_multiply = false;
  bool deferred = false;  // see EmulatedDriver

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
  int num_graphs = 0;  // recorded, and there still
  int num_replays = 0;
  int num_copies_to_device = 0;
  int num_waits = 0;       // for everything
  int num_mark_waits = 0;  // for a step
};

// What was captured, in order.
struct EmulatedGraph : CudaGraph {
  explicit EmulatedGraph(int* num_graphs) : count(num_graphs) { ++*count; }
  ~EmulatedGraph() override { --*count; }

  struct Zero {
    void* to;
    size_t bytes;
  };
  std::vector<std::variant<cuda::Kernel, Zero>> operations;
  int* const count;  // of those that there are
};

// Runs everything inside its call, or, if it is `deferred`, nothing before it
// is waited for: the two extremes of what a stream may do. Memory starts as
// garbage; nothing is readable past its end (under AddressSanitizer).
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
    absl::StatusOr<Buffer> buffer = Garbage(bytes);
    pinned_.emplace_back(static_cast<const char*>(buffer->data()), bytes);
    return buffer;
  }

  absl::Status CopyToDevice(void* to, const void* from, size_t bytes) override {
    if (capture_ != nullptr) return Spoil("a copy");
    ++device_->num_copies_to_device;
    if (IsPinned(from)) {
      Enqueue([=] { std::memcpy(to, from, bytes); });
    } else {
      Enqueue([to, copy = std::string(static_cast<const char*>(from), bytes)] {
        std::memcpy(to, copy.data(), copy.size());
      });
    }
    return Health();
  }
  absl::Status CopyToHost(void* to, const void* from, size_t bytes) override {
    if (capture_ != nullptr) return Spoil("a copy");
    Enqueue([=] { std::memcpy(to, from, bytes); });
    if (!IsPinned(to)) RunUntil(num_enqueued_);
    return Health();
  }
  absl::Status Zero(void* to, size_t bytes) override {
    if (capture_ != nullptr) {
      capture_->operations.push_back(EmulatedGraph::Zero{to, bytes});
      return Health();
    }
    Enqueue([=] { std::memset(to, 0, bytes); });
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
    Enqueue([this, kernel] { Run(kernel); });
    return absl::OkStatus();
  }
  bool can_multiply() const override { return device_->can_multiply; }
  absl::Status Multiply(const HalfProduct& product) override {
    if (capture_ != nullptr) return Spoil("a product");
    ++device_->num_products;
    Enqueue([product] { Run(product); });
    return Health();
  }
  absl::Status Synchronize() override {
    if (capture_ != nullptr) return Spoil("waiting");
    ++device_->num_waits;
    RunUntil(num_enqueued_);
    return Health();
  }

  absl::Status PutMark(int mark) override {
    if (capture_ != nullptr) return Spoil("a mark");
    marks_[mark] = num_enqueued_;
    return Health();
  }
  absl::Status AwaitMark(int mark) override {
    BINARYMOS_CHECK_GE(marks_[mark], 0);
    ++device_->num_mark_waits;
    RunUntil(marks_[mark]);
    return Health();
  }

  // Its clock counts kernels that ran, a microsecond each.
  absl::Status StartTimer() override {
    if (capture_ != nullptr) return Spoil("a timer");
    Enqueue([this] { ran_at_start_ = num_ran_; });
    return Health();
  }
  absl::Status StopTimer() override {
    if (capture_ != nullptr) return Spoil("a timer");
    Enqueue([this] { ran_at_stop_ = num_ran_; });
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
    capture_ = std::make_unique<EmulatedGraph>(&device_->num_graphs);
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
    Enqueue([this, operations = static_cast<EmulatedGraph&>(graph).operations] {
      for (const auto& operation : operations) {
        if (const auto* zero = std::get_if<EmulatedGraph::Zero>(&operation)) {
          std::memset(zero->to, 0, zero->bytes);
        } else {
          Run(std::get<cuda::Kernel>(operation));
        }
      }
    });
    return absl::OkStatus();
  }

 private:
  void Enqueue(std::function<void()> operation) {
    ++num_enqueued_;
    queue_.push_back(std::move(operation));
    if (!device_->deferred) RunUntil(num_enqueued_);
  }

  // Runs what was enqueued up to operation `end`, counted from the first; none
  // of it once the device has failed.
  void RunUntil(int64_t end) {
    for (; num_run_ < end; ++num_run_) {
      if (Health().ok()) queue_.front()();
      queue_.pop_front();
    }
  }
  bool IsPinned(const void* p) const {
    return std::any_of(pinned_.begin(), pinned_.end(), [&](const auto& range) {
      return p >= range.first && p < range.first + range.second;
    });
  }

  // In emulated_driver.cc, so that kernels are compiled for it once.
  void Run(const cuda::Kernel& kernel);
  static void Run(const HalfProduct& product);

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
  std::deque<std::function<void()>> queue_;  // enqueued and not run
  int64_t num_enqueued_ = 0;
  int64_t num_run_ = 0;
  int64_t marks_[kMaxCudaStepsInFlight] = {-1, -1};
  // Page-locked memory, freed or not.
  std::vector<std::pair<const char*, size_t>> pinned_;
};

}  // namespace binarymos
