// The CUDA backend. Names nothing of CUDA, so that any build can include it.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "engine/backend/backend.h"

namespace binarymos {

// Device `ordinal`, as CUDA counts them. `activation_bits` as in
// BackendOptions. UNAVAILABLE if there is no such device or CUDA is not built
// in.
absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(int ordinal,
                                                           int activation_bits);

}  // namespace binarymos
