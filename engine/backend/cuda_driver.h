// What the CUDA backend asks of a device. Names nothing of CUDA: tests have a
// driver that runs the kernels on the CPU and fails on demand.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/core/buffer.h"
#include "engine/kernels/cuda/kernel.h"

namespace binarymos {

// Steps whose copies and results may be under way.
inline constexpr int kMaxCudaStepsInFlight = 2;

struct CudaDeviceInfo {
  int ordinal = 0;
  std::string name;  // "NVIDIA H200"
  int compute_major = 0;
  int compute_minor = 0;
  int num_sms = 1;
  size_t max_shared_bytes = 0;  // that a block can ask for
  // Of cuda::FusedBinaryMos that run at once, a block per multiprocessor; 0:
  // the device or the build has no clusters.
  int max_clusters = 0;
  // Device and build have the kernels with kNeedsWgmma (kernel.h).
  bool has_wgmma = false;
};

struct CudaMemory {
  size_t free = 0;
  size_t total = 0;
};

// y = x Wᵀ, or y += x Wᵀ, of halves with sums in f32, in an order of the
// library's. x [rows, in] f16, weight [out, in] f16, y [rows, out] f32, all on
// the device; x and weight aligned to 16 bytes.
struct HalfProduct {
  const void* x = nullptr;
  const void* weight = nullptr;
  void* y = nullptr;
  int64_t rows = 0;
  int64_t in = 0;
  int64_t out = 0;
  bool accumulate = false;
};

// Operations that were recorded, to be run as one. Made by a CudaDriver, usable
// with that driver; may go away while it runs.
class CudaGraph {
 public:
  virtual ~CudaGraph() = default;
};

// One device and one stream on it: what is enqueued runs in order. Owned by
// CudaBackend and confined to its thread. UNAVAILABLE or INTERNAL statuses are
// final, they name the call that failed; a kernel's failure shows up in a later
// call.
class CudaDriver {
 public:
  virtual ~CudaDriver() = default;

  virtual const CudaDeviceInfo& info() const = 0;
  virtual absl::StatusOr<CudaMemory> Memory() const = 0;

  // Device memory, aligned to 256 bytes, contents undefined; host memory that
  // the device can copy from and to. RESOURCE_EXHAUSTED if there is none.
  virtual absl::StatusOr<Buffer> AllocateDevice(size_t bytes) = 0;
  virtual absl::StatusOr<Buffer> AllocatePinned(size_t bytes) = 0;

  // Enqueued. If `host` is from AllocatePinned it must stay as it is until the
  // copy has run; other memory may change on return.
  virtual absl::Status CopyToDevice(void* device, const void* host,
                                    size_t bytes) = 0;
  // Enqueued; `host` holds the bytes after Synchronize, or AwaitMark of a mark
  // behind it. If `host` is not from AllocatePinned, this may wait.
  virtual absl::Status CopyToHost(void* host, const void* device,
                                  size_t bytes) = 0;
  virtual absl::Status Zero(void* device, size_t bytes) = 0;    // enqueued
  virtual absl::Status Launch(const cuda::Kernel& kernel) = 0;  // enqueued
  // Whether there is a library for Multiply.
  virtual bool can_multiply() const = 0;
  virtual absl::Status Multiply(const HalfProduct& product) = 0;  // enqueued

  // Waits for everything enqueued.
  virtual absl::Status Synchronize() = 0;
  // Puts mark `mark` in [0, kMaxCudaStepsInFlight) behind everything enqueued,
  // and waits for what is ahead of where it was put last.
  virtual absl::Status PutMark(int mark) = 0;
  virtual absl::Status AwaitMark(int mark) = 0;

  // The device's clock: from where StartTimer was enqueued last to where
  // StopTimer was. TimerSeconds REQUIRES Synchronize after both, or AwaitMark
  // of a mark behind them.
  virtual absl::Status StartTimer() = 0;  // enqueued
  virtual absl::Status StopTimer() = 0;   // enqueued
  virtual absl::StatusOr<double> TimerSeconds() = 0;

  // Between the two, Launch and Zero are recorded instead of enqueued; anything
  // else fails and spoils the recording. Failures to record are not final: they
  // leave the driver as it was before BeginCapture.
  virtual absl::Status BeginCapture() = 0;
  virtual absl::StatusOr<std::unique_ptr<CudaGraph>> EndCapture() = 0;
  virtual absl::Status Replay(CudaGraph& graph) = 0;  // enqueued
};

}  // namespace binarymos
