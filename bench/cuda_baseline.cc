#include "bench/cuda_baseline.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "bench/random_halves.h"
#include "bench/rotated_layer.h"
#include "engine/backend/cuda_blas.h"
#include "engine/backend/cuda_raii.h"
#include "engine/core/buffer.h"

namespace binarymos {
namespace {

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
    if (blas_ == nullptr) {
      absl::StatusOr<std::unique_ptr<CudaBlas>> blas = CudaBlas::Load(stream_);
      if (!blas.ok()) return blas.status();
      blas_ = *std::move(blas);
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
      return blas_->Multiply({.x = x->data(),
                              .weight = weights[call % weights.size()].data(),
                              .y = y->data(),
                              .rows = rows,
                              .in = in,
                              .out = out},
                             CUDA_R_16F);
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
  std::unique_ptr<CudaBlas> blas_;
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
