// CudaDriver on the CUDA runtime, and the creation of the backend on it. Linked
// where CUDA is built in; cuda_backend_stub.cc otherwise.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/backend/cuda_backend.h"
#include "engine/backend/cuda_blas.h"
#include "engine/backend/cuda_driver.h"
#include "engine/backend/cuda_raii.h"
#include "engine/kernels/cuda/launch.h"

namespace binarymos {
namespace {

constexpr int kOldestMajor = 8;  // b1 MMA with .and.popc, cp.async
constexpr int kHopperMajor = 9;  // clusters, programmatic dependent launch

class RuntimeGraph : public CudaGraph {
 public:
  explicit RuntimeGraph(CudaGraphExec exec) : exec_(std::move(exec)) {}
  cudaGraphExec_t get() const { return exec_.get(); }

 private:
  CudaGraphExec exec_;
};

class CudaRuntimeDriver : public CudaDriver {
 public:
  // `blas`: on `stream`, or null. `overlap`: see cuda::Launch.
  CudaRuntimeDriver(CudaDeviceInfo info, CudaStream stream, CudaTimer timer,
                    std::vector<CudaEvent> marks,
                    std::unique_ptr<CudaBlas> blas, bool overlap)
      : info_(std::move(info)),
        stream_(std::move(stream)),
        timer_(std::move(timer)),
        marks_(std::move(marks)),
        blas_(std::move(blas)),
        overlap_(overlap) {}

  const CudaDeviceInfo& info() const override { return info_; }

  absl::StatusOr<CudaMemory> Memory() const override {
    CudaMemory memory;
    absl::Status status = SetDevice();
    status.Update(BINARYMOS_CUDA(cudaMemGetInfo(&memory.free, &memory.total)));
    if (!status.ok()) return status;
    return memory;
  }

  absl::StatusOr<Buffer> AllocateDevice(size_t bytes) override {
    if (absl::Status status = SetDevice(); !status.ok()) return status;
    return AllocateDeviceBuffer(bytes);
  }
  absl::StatusOr<Buffer> AllocatePinned(size_t bytes) override {
    if (absl::Status status = SetDevice(); !status.ok()) return status;
    return AllocatePinnedBuffer(bytes);
  }

  absl::Status CopyToDevice(void* device, const void* host,
                            size_t bytes) override {
    return BINARYMOS_CUDA(cudaMemcpyAsync(
        device, host, bytes, cudaMemcpyHostToDevice, stream_.get()));
  }
  absl::Status CopyToHost(void* host, const void* device,
                          size_t bytes) override {
    return BINARYMOS_CUDA(cudaMemcpyAsync(
        host, device, bytes, cudaMemcpyDeviceToHost, stream_.get()));
  }
  absl::Status Zero(void* device, size_t bytes) override {
    return BINARYMOS_CUDA(cudaMemsetAsync(device, 0, bytes, stream_.get()));
  }
  absl::Status Launch(const cuda::Kernel& kernel) override {
    absl::Status status = SetDevice();
    status.Update(
        BINARYMOS_CUDA(cuda::Launch(kernel, overlap_, stream_.get())));
    return status;
  }
  bool can_multiply() const override { return blas_ != nullptr; }
  absl::Status Multiply(const HalfProduct& product) override {
    absl::Status status = SetDevice();
    status.Update(blas_->Multiply(product));
    return status;
  }
  absl::Status Synchronize() override {
    return BINARYMOS_CUDA(cudaStreamSynchronize(stream_.get()));
  }
  absl::Status PutMark(int mark) override {
    return BINARYMOS_CUDA(cudaEventRecord(marks_[mark].get(), stream_.get()));
  }
  absl::Status AwaitMark(int mark) override {
    return BINARYMOS_CUDA(cudaEventSynchronize(marks_[mark].get()));
  }

  absl::Status StartTimer() override { return timer_.Start(stream_); }
  absl::Status StopTimer() override { return timer_.Stop(stream_); }
  absl::StatusOr<double> TimerSeconds() override { return timer_.Seconds(); }

  absl::Status BeginCapture() override {
    absl::Status status = SetDevice();
    status.Update(BINARYMOS_CUDA(cudaStreamBeginCapture(
        stream_.get(), cudaStreamCaptureModeThreadLocal)));
    return status;
  }
  absl::StatusOr<std::unique_ptr<CudaGraph>> EndCapture() override {
    absl::StatusOr<CudaGraphExec> exec = CudaGraphExec::EndCapture(stream_);
    if (!exec.ok()) return exec.status();
    return std::make_unique<RuntimeGraph>(*std::move(exec));
  }
  absl::Status Replay(CudaGraph& graph) override {
    absl::Status status = SetDevice();
    status.Update(BINARYMOS_CUDA(cudaGraphLaunch(
        static_cast<RuntimeGraph&>(graph).get(), stream_.get())));
    return status;
  }

 private:
  // The device is a property of the calling thread, and the loop's thread is
  // not the one that loads.
  absl::Status SetDevice() const {
    return BINARYMOS_CUDA(cudaSetDevice(info_.ordinal));
  }

  CudaDeviceInfo info_;
  CudaStream stream_;
  CudaTimer timer_;
  std::vector<CudaEvent> marks_;  // [kMaxCudaStepsInFlight]
  const std::unique_ptr<CudaBlas> blas_;
  const bool overlap_;
};

absl::Status Unavailable(const absl::Status& cause) {
  return absl::UnavailableError(absl::StrCat(
      "no CUDA device can be used (no driver, an old one, or no device): ",
      cause.message(), "; use --device=cpu"));
}

absl::StatusOr<CudaDeviceInfo> Describe(int ordinal) {
  int count = 0;
  if (absl::Status status = BINARYMOS_CUDA(cudaGetDeviceCount(&count));
      !status.ok()) {
    return Unavailable(status);
  }
  if (ordinal >= count) {
    return absl::UnavailableError(
        absl::StrCat("--device=cuda:", ordinal, ", but there ",
                     count == 1 ? "is 1 CUDA device"
                                : absl::StrCat("are ", count, " CUDA devices"),
                     ", counted from 0"));
  }
  cudaDeviceProp properties;
  if (absl::Status status =
          BINARYMOS_CUDA(cudaGetDeviceProperties(&properties, ordinal));
      !status.ok()) {
    return Unavailable(status);
  }
  return CudaDeviceInfo{.ordinal = ordinal,
                        .name = properties.name,
                        .compute_major = properties.major,
                        .compute_minor = properties.minor,
                        .num_sms = properties.multiProcessorCount,
                        .max_shared_bytes = properties.sharedMemPerBlockOptin};
}

// Whether this build has kernels that the current device can run.
absl::Status CheckKernels(const CudaDeviceInfo& info) {
  const std::string device = absl::StrCat(
      "CUDA device ", info.ordinal, " (", info.name, ", compute capability ",
      info.compute_major, ".", info.compute_minor, ")");
  if (info.compute_major < kOldestMajor) {
    return absl::UnavailableError(
        absl::StrCat(device,
                     " is too old; 8.0 (Ampere) or newer is needed; use "
                     "--device=cpu"));
  }
  const absl::Status status = BINARYMOS_CUDA(cuda::PrepareKernels());
  if (absl::IsUnavailable(status)) {
    return absl::UnavailableError(absl::StrCat(
        "this build has no kernels for ", device,
        "; build with BINARYMOS_CUDA_ARCHITECTURES that include it, or use "
        "--device=cpu (",
        status.message(), ")"));
  }
  return status;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(
    const CudaBackendOptions& options) {
  absl::StatusOr<CudaDeviceInfo> info = Describe(options.ordinal);
  if (!info.ok()) return info.status();
  absl::Status status = BINARYMOS_CUDA(cudaSetDevice(options.ordinal));
  if (!status.ok()) return Unavailable(status);
  if (status = CheckKernels(*info); !status.ok()) return status;
  // With as much shared memory, a multiprocessor has one block.
  info->max_clusters = cuda::MaxActiveClusters(info->max_shared_bytes / 2 + 1);
  info->has_wgmma = cuda::HasWgmma();
  absl::StatusOr<CudaStream> stream = CudaStream::Create();
  if (!stream.ok()) return Unavailable(stream.status());
  absl::StatusOr<CudaTimer> timer = CudaTimer::Create();
  if (!timer.ok()) return Unavailable(timer.status());
  std::vector<CudaEvent> marks;
  for (int i = 0; i < kMaxCudaStepsInFlight; ++i) {
    absl::StatusOr<CudaEvent> mark = CudaEvent::Create(cudaEventDisableTiming);
    if (!mark.ok()) return Unavailable(mark.status());
    marks.push_back(*std::move(mark));
  }
  std::unique_ptr<CudaBlas> blas;
  std::string note;
  if (options.fast_linear) {
    absl::StatusOr<std::unique_ptr<CudaBlas>> loaded = CudaBlas::Load(*stream);
    if (loaded.ok()) {
      blas = *std::move(loaded);
    } else {
      note = absl::StrCat("--fast-linear leaves Float16 linears as they are: ",
                          loaded.status().message());
    }
  }
  const bool overlap = options.overlap && info->compute_major >= kHopperMajor;
  auto backend = std::make_unique<CudaBackend>(
      std::make_unique<CudaRuntimeDriver>(*std::move(info), *std::move(stream),
                                          *std::move(timer), std::move(marks),
                                          std::move(blas), overlap),
      options);
  backend->set_note(std::move(note));
  return backend;
}

}  // namespace binarymos
