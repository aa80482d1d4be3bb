// The serving loop in this process, without gRPC, text or sockets: the most
// that a server around this engine could reach.
#pragma once

#include "absl/status/statusor.h"
#include "bench/workload.h"
#include "engine/engine.h"

namespace binarymos {

struct EngineBenchOptions {
  bool prefix_caching = true;
  // So many more streams of another tenant are sent first. They are served, but
  // the result does not count them.
  int flood = 0;
};

// Runs `workload` once through a ServingLoop of its own around `engine`.
// Status of the first stream that did not end with all its tokens.
absl::StatusOr<RunResult> RunOnEngine(Engine& engine, const Workload& workload,
                                      const EngineBenchOptions& options = {});

}  // namespace binarymos
