// Owners of what the CUDA runtime hands out, and its errors as statuses. There
// is no current stream: whoever enqueues names one. Only in builds with CUDA.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/core/buffer.h"

namespace binarymos {

// `expression` failed with `error` at file:line. RESOURCE_EXHAUSTED for want of
// memory, UNAVAILABLE where there is no device or driver to talk to, else
// INTERNAL. OK for cudaSuccess.
absl::Status CudaStatus(cudaError_t error, const char* expression,
                        const char* file, int line);

// The status of one CUDA call.
#define BINARYMOS_CUDA(expression) \
  ::binarymos::CudaStatus((expression), #expression, __FILE__, __LINE__)

// A stream of its own on the device that is current at creation. Move-only.
class CudaStream {
 public:
  static absl::StatusOr<CudaStream> Create();

  CudaStream(CudaStream&& other) noexcept
      : stream_(std::exchange(other.stream_, nullptr)) {}
  CudaStream& operator=(CudaStream&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }
  // Waits for nothing: work that is enqueued still runs.
  ~CudaStream();

  cudaStream_t get() const { return stream_; }

 private:
  explicit CudaStream(cudaStream_t stream) : stream_(stream) {}

  cudaStream_t stream_ = nullptr;
};

// A place in a stream that the host can wait for. Move-only.
class CudaEvent {
 public:
  // On the device that is current; `flags` as cudaEventCreateWithFlags has it.
  static absl::StatusOr<CudaEvent> Create(unsigned flags);

  CudaEvent(CudaEvent&& other) noexcept
      : event_(std::exchange(other.event_, nullptr)) {}
  CudaEvent& operator=(CudaEvent&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  ~CudaEvent();

  cudaEvent_t get() const { return event_; }

 private:
  explicit CudaEvent(cudaEvent_t event) : event_(event) {}

  cudaEvent_t event_ = nullptr;
};

// The device's clock at two places of a stream. Move-only.
class CudaTimer {
 public:
  static absl::StatusOr<CudaTimer> Create();

  // Enqueued.
  absl::Status Start(const CudaStream& stream);
  absl::Status Stop(const CudaStream& stream);
  // From where Start stood to where Stop did. REQUIRES: the stream has been
  // waited for since.
  absl::StatusOr<double> Seconds() const;

 private:
  CudaTimer(CudaEvent start, CudaEvent stop)
      : start_(std::move(start)), stop_(std::move(stop)) {}

  CudaEvent start_;
  CudaEvent stop_;
};

// A graph that can be launched. Move-only.
class CudaGraphExec {
 public:
  // Ends the capture in `stream` and instantiates what was recorded.
  static absl::StatusOr<CudaGraphExec> EndCapture(const CudaStream& stream);

  CudaGraphExec(CudaGraphExec&& other) noexcept
      : exec_(std::exchange(other.exec_, nullptr)) {}
  CudaGraphExec& operator=(CudaGraphExec&& other) noexcept {
    std::swap(exec_, other.exec_);
    return *this;
  }
  ~CudaGraphExec();

  cudaGraphExec_t get() const { return exec_; }

 private:
  explicit CudaGraphExec(cudaGraphExec_t exec) : exec_(exec) {}

  cudaGraphExec_t exec_ = nullptr;
};

// Memory on the current device, and page-locked host memory. Freed by the
// Buffer, on any thread; freeing waits until the device is done with it.
absl::StatusOr<Buffer> AllocateDeviceBuffer(size_t bytes);
absl::StatusOr<Buffer> AllocatePinnedBuffer(size_t bytes);

}  // namespace binarymos
