// cuBLAS, looked for at run time: nothing links it, and a machine need not have
// it. Only in builds with CUDA.
#pragma once

#include <cuda_runtime_api.h>
#include <library_types.h>

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/backend/cuda_driver.h"
#include "engine/backend/cuda_raii.h"
#include "engine/core/buffer.h"

namespace binarymos {

// One handle of cuBLAS, bound to a stream, with a workspace of its own so that
// its calls can be recorded. Confined to the stream's thread.
class CudaBlas {
 public:
  // On the device that is current; `stream` outlives it. UNAVAILABLE if the
  // library is not there, lacks a function or does not start.
  static absl::StatusOr<std::unique_ptr<CudaBlas>> Load(
      const CudaStream& stream);
  ~CudaBlas();
  CudaBlas(const CudaBlas&) = delete;
  CudaBlas& operator=(const CudaBlas&) = delete;

  // Enqueues it; y_type: CUDA_R_32F, or CUDA_R_16F for a y of halves.
  absl::Status Multiply(const HalfProduct& product,
                        cudaDataType y_type = CUDA_R_32F);

 private:
  CudaBlas() = default;

  void* handle_ = nullptr;
  Buffer workspace_;
  // Types are those of cublas_api.h.
  int (*destroy_)(void*) = nullptr;
  int (*gemm_)(void*, int, int, int, int, int, const void*, const void*,
               cudaDataType, int, const void*, cudaDataType, int, const void*,
               void*, cudaDataType, int, int, int) = nullptr;
};

}  // namespace binarymos
