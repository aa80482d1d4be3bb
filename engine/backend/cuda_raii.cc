#include "engine/backend/cuda_raii.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace binarymos {
namespace {

absl::StatusCode CodeOf(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return absl::StatusCode::kResourceExhausted;
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorInvalidDevice:
    case cudaErrorDevicesUnavailable:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorSystemNotReady:
    case cudaErrorStubLibrary:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
      return absl::StatusCode::kUnavailable;
    default:
      return absl::StatusCode::kInternal;
  }
}

// CUDA remembers an error that is not sticky until somebody asks.
absl::Status OutOfMemory(cudaError_t error, const char* kind, size_t bytes) {
  cudaGetLastError();
  return absl::Status(
      CodeOf(error), absl::StrCat("cannot allocate ", bytes, " bytes of ", kind,
                                  " memory: ", cudaGetErrorString(error)));
}

}  // namespace

absl::Status CudaStatus(cudaError_t error, const char* expression,
                        const char* file, int line) {
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::Status(CodeOf(error),
                      absl::StrCat("CUDA: ", cudaGetErrorString(error), " (",
                                   cudaGetErrorName(error), ") in ", expression,
                                   " at ", file, ":", line));
}

absl::StatusOr<CudaStream> CudaStream::Create() {
  cudaStream_t stream = nullptr;
  const absl::Status status =
      BINARYMOS_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  if (!status.ok()) return status;
  return CudaStream(stream);
}

CudaStream::~CudaStream() {
  // An error here was reported by the call that caused it.
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

absl::StatusOr<CudaEvent> CudaEvent::Create(unsigned flags) {
  cudaEvent_t event = nullptr;
  const absl::Status status =
      BINARYMOS_CUDA(cudaEventCreateWithFlags(&event, flags));
  if (!status.ok()) return status;
  return CudaEvent(event);
}

CudaEvent::~CudaEvent() {
  if (event_ != nullptr) cudaEventDestroy(event_);
}

absl::StatusOr<CudaTimer> CudaTimer::Create() {
  absl::StatusOr<CudaEvent> start = CudaEvent::Create(cudaEventDefault);
  if (!start.ok()) return start.status();
  absl::StatusOr<CudaEvent> stop = CudaEvent::Create(cudaEventDefault);
  if (!stop.ok()) return stop.status();
  return CudaTimer(*std::move(start), *std::move(stop));
}

absl::Status CudaTimer::Start(const CudaStream& stream) {
  return BINARYMOS_CUDA(cudaEventRecord(start_.get(), stream.get()));
}

absl::Status CudaTimer::Stop(const CudaStream& stream) {
  return BINARYMOS_CUDA(cudaEventRecord(stop_.get(), stream.get()));
}

absl::StatusOr<double> CudaTimer::Seconds() const {
  float milliseconds = 0;
  const absl::Status status = BINARYMOS_CUDA(
      cudaEventElapsedTime(&milliseconds, start_.get(), stop_.get()));
  if (!status.ok()) return status;
  return 1e-3 * milliseconds;
}

absl::StatusOr<CudaGraphExec> CudaGraphExec::EndCapture(
    const CudaStream& stream) {
  cudaGraph_t graph = nullptr;
  absl::Status status =
      BINARYMOS_CUDA(cudaStreamEndCapture(stream.get(), &graph));
  cudaGraphExec_t exec = nullptr;
  if (status.ok()) {
    status = BINARYMOS_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  }
  if (graph != nullptr) cudaGraphDestroy(graph);
  if (!status.ok()) {
    cudaGetLastError();  // what spoilt a recording is not sticky
    return status;
  }
  return CudaGraphExec(exec);
}

CudaGraphExec::~CudaGraphExec() {
  // Goes away after the launches that are under way.
  if (exec_ != nullptr) cudaGraphExecDestroy(exec_);
}

absl::StatusOr<Buffer> AllocateDeviceBuffer(size_t bytes) {
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, std::max<size_t>(bytes, 1));
  if (error != cudaSuccess) return OutOfMemory(error, "device", bytes);
  return Buffer(data, bytes, [](void* p, size_t) { cudaFree(p); });
}

absl::StatusOr<Buffer> AllocatePinnedBuffer(size_t bytes) {
  void* data = nullptr;
  const cudaError_t error = cudaMallocHost(&data, std::max<size_t>(bytes, 1));
  if (error != cudaSuccess) return OutOfMemory(error, "page-locked", bytes);
  return Buffer(data, bytes, [](void* p, size_t) { cudaFreeHost(p); });
}

}  // namespace binarymos
