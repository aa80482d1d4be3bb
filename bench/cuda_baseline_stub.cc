#include "absl/status/status.h"
#include "bench/cuda_baseline.h"

namespace binarymos {

absl::StatusOr<std::unique_ptr<CudaBaseline>> CudaBaseline::Create(
    int /*ordinal*/) {
  return absl::UnavailableError("CUDA is not built in");
}

}  // namespace binarymos
