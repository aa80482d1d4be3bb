#include "bench/cuda_baseline.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <library_types.h>

#include <algorithm>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "bench/random_halves.h"
#include "bench/rotated_layer.h"
#include "engine/backend/cuda_raii.h"
#include "engine/core/buffer.h"

namespace binarymos {
namespace {

// The part of cuBLAS that is needed, found at run time so that nothing links
// it. Types and numbers are those of cublas_api.h.
class Cublas {
 public:
  static absl::StatusOr<std::unique_ptr<Cublas>> Load(cudaStream_t stream) {
    void* library = nullptr;
    for (const char* name :
         {"libcublas.so.13", "libcublas.so.12", "libcublas.so"}) {
      library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
      if (library != nullptr) break;
    }
    if (library == nullptr) {
      return absl::UnavailableError(
          absl::StrCat("cuBLAS was not found: ", dlerror()));
    }
    std::unique_ptr<Cublas> cublas(new Cublas);
    const auto find = [&](const char* name, auto& function) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(
          dlsym(library, name));
      return function != nullptr;
    };
    int (*create)(void**) = nullptr;
    int (*set_stream)(void*, cudaStream_t) = nullptr;
    int (*set_workspace)(void*, void*, size_t) = nullptr;
    if (!find("cublasCreate_v2", create) ||
        !find("cublasDestroy_v2", cublas->destroy_) ||
        !find("cublasSetStream_v2", set_stream) ||
        !find("cublasSetWorkspace_v2", set_workspace) ||
        !find("cublasGemmEx", cublas->gemm_)) {
      return absl::UnavailableError("cuBLAS lacks a function");
    }
    absl::StatusOr<Buffer> workspace = AllocateDeviceBuffer(kWorkspaceBytes);
    if (!workspace.ok()) return workspace.status();
    cublas->workspace_ = *std::move(workspace);
    if (create(&cublas->handle_) != 0 ||
        set_stream(cublas->handle_, stream) != 0 ||
        set_workspace(cublas->handle_, cublas->workspace_.data(),
                      kWorkspaceBytes) != 0) {
      return absl::UnavailableError("cuBLAS does not start");
    }
    return cublas;
  }
  ~Cublas() {
    if (handle_ != nullptr) destroy_(handle_);
  }

  // Enqueues y = x Wᵀ. Column-major, hence y and x transposed.
  absl::Status Linear(const void* weight, const void* x, void* y, int64_t in,
                      int64_t out, int64_t rows) {
    constexpr int kTransposed = 1, kPlain = 0;   // CUBLAS_OP_T, CUBLAS_OP_N
    constexpr int kF32Sums = 68, kDefault = -1;  // CUBLAS_COMPUTE_32F
    const float one = 1.0f, zero = 0.0f;
    const auto m = static_cast<int>(out), n = static_cast<int>(rows),
               k = static_cast<int>(in);
    const int status =
        gemm_(handle_, kTransposed, kPlain, m, n, k, &one, weight, CUDA_R_16F,
              k, x, CUDA_R_16F, k, &zero, y, CUDA_R_16F, m, kF32Sums, kDefault);
    if (status == 0) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("cublasGemmEx: status ", status));
  }

 private:
  static constexpr size_t kWorkspaceBytes = size_t{32} << 20;

  Cublas() = default;

  void* handle_ = nullptr;
  Buffer workspace_;
  int (*destroy_)(void*) = nullptr;
  int (*gemm_)(void*, int, int, int, int, int, const void*, const void*,
               cudaDataType, int, const void*, cudaDataType, int, const void*,
               void*, cudaDataType, int, int, int) = nullptr;
};

class RuntimeBaseline : public CudaBaseline {
 public:
  RuntimeBaseline(CudaStream stream, CudaTimer timer)
      : stream_(std::move(stream)), timer_(std::move(timer)) {}

  absl::StatusOr<std::vector<double>> Copy(size_t bytes,
                                           const Sampling& sampling) override {
    absl::StatusOr<Buffer> from = RandomMemory(bytes);
    if (!from.ok()) return from.status();
    absl::StatusOr<Buffer> to = AllocateDeviceBuffer(bytes);
    if (!to.ok()) return to.status();
    return Sample(sampling, [&](int) {
      return BINARYMOS_CUDA(cudaMemcpyAsync(to->data(), from->data(), bytes,
                                            cudaMemcpyDeviceToDevice,
                                            stream_.get()));
    });
  }

  absl::StatusOr<std::vector<double>> Float16Linear(
      int64_t in, int64_t out, int64_t rows,
      const Sampling& sampling) override {
    if (cublas_ == nullptr) {
      absl::StatusOr<std::unique_ptr<Cublas>> cublas =
          Cublas::Load(stream_.get());
      if (!cublas.ok()) return cublas.status();
      cublas_ = *std::move(cublas);
    }
    const size_t weight_bytes = in * out * sizeof(uint16_t);
    std::vector<Buffer> weights;
    for (size_t bytes = 0; bytes < kRotatedBytes; bytes += weight_bytes) {
      absl::StatusOr<Buffer> weight = RandomMemory(weight_bytes);
      if (!weight.ok()) return weight.status();
      weights.push_back(*std::move(weight));
    }
    absl::StatusOr<Buffer> x = RandomMemory(rows * in * sizeof(uint16_t));
    if (!x.ok()) return x.status();
    absl::StatusOr<Buffer> y =
        AllocateDeviceBuffer(rows * out * sizeof(uint16_t));
    if (!y.ok()) return y.status();
    return Sample(sampling, [&](int call) {
      return cublas_->Linear(weights[call % weights.size()].data(), x->data(),
                             y->data(), in, out, rows);
    });
  }

 private:
  // Random f16 numbers; above a size the same ones again.
  absl::StatusOr<Buffer> RandomMemory(size_t bytes) {
    constexpr size_t kPattern = size_t{16} << 20;
    if (pattern_.empty()) {
      pattern_ = RandomHalves(kPattern / sizeof(uint16_t), 1.0f, 1);
    }
    absl::StatusOr<Buffer> memory = AllocateDeviceBuffer(bytes);
    if (!memory.ok()) return memory.status();
    for (size_t done = 0; done < bytes; done += kPattern) {
      const absl::Status status = BINARYMOS_CUDA(
          cudaMemcpy(static_cast<char*>(memory->data()) + done, pattern_.data(),
                     std::min(kPattern, bytes - done), cudaMemcpyHostToDevice));
      if (!status.ok()) return status;
    }
    return memory;
  }

  absl::StatusOr<std::vector<double>> Sample(
      const Sampling& sampling,
      absl::FunctionRef<absl::Status(int call)> enqueue) {
    // Once without recording: libraries load their kernels.
    absl::Status status = enqueue(0);
    status.Update(BINARYMOS_CUDA(cudaStreamSynchronize(stream_.get())));
    if (!status.ok()) return status;
    status = BINARYMOS_CUDA(cudaStreamBeginCapture(
        stream_.get(), cudaStreamCaptureModeThreadLocal));
    if (!status.ok()) return status;
    for (int i = 0; i < sampling.calls; ++i) status.Update(enqueue(i));
    absl::StatusOr<CudaGraphExec> graph = CudaGraphExec::EndCapture(stream_);
    status.Update(graph.status());
    if (!status.ok()) return status;
    std::vector<double> seconds;
    for (int i = -sampling.warm_ups; i < sampling.samples; ++i) {
      status = timer_.Start(stream_);
      status.Update(
          BINARYMOS_CUDA(cudaGraphLaunch(graph->get(), stream_.get())));
      status.Update(timer_.Stop(stream_));
      status.Update(BINARYMOS_CUDA(cudaStreamSynchronize(stream_.get())));
      if (!status.ok()) return status;
      const absl::StatusOr<double> took = timer_.Seconds();
      if (!took.ok()) return took.status();
      if (i >= 0) seconds.push_back(*took / sampling.calls);
    }
    return seconds;
  }

  CudaStream stream_;
  CudaTimer timer_;
  std::unique_ptr<Cublas> cublas_;
  std::vector<uint16_t> pattern_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<CudaBaseline>> CudaBaseline::Create(
    int ordinal) {
  const absl::Status status = BINARYMOS_CUDA(cudaSetDevice(ordinal));
  if (!status.ok()) return status;
  absl::StatusOr<CudaStream> stream = CudaStream::Create();
  if (!stream.ok()) return stream.status();
  absl::StatusOr<CudaTimer> timer = CudaTimer::Create();
  if (!timer.ok()) return timer.status();
  return std::make_unique<RuntimeBaseline>(*std::move(stream),
                                           *std::move(timer));
}

}  // namespace binarymos
