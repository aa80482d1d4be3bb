// Linked instead of cuda_runtime_driver.cc where CUDA is not built in.
#include "absl/status/status.h"
#include "engine/backend/cuda_backend.h"

namespace binarymos {

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(
    const CudaBackendOptions& /*options*/) {
  return absl::UnavailableError(
      "built without CUDA; use --device=cpu, or a build with "
      "BINARYMOS_CUDA=ON");
}

}  // namespace binarymos
