// The serving loop in this process, without gRPC, text or sockets: the most
// that a server around this engine could reach.
#pragma once

#include "absl/status/statusor.h"
#include "bench/workload.h"
#include "engine/engine.h"

namespace binarymos {

// Runs `workload` once through a ServingLoop of its own around `engine`.
// Status of the first stream that did not end with all its tokens.
absl::StatusOr<RunResult> RunOnEngine(Engine& engine, const Workload& workload);

}  // namespace binarymos
