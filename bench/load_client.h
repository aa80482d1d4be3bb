// A gRPC load generator: a closed loop of streams against a running server.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "bench/workload.h"

namespace binarymos {

// Runs `workload` once against `target` ("127.0.0.1:9000"): every stream sends
// its request at the same time and reads until its end. process_seconds is not
// filled in: the engine lives elsewhere. Status of the first stream that failed
// or ended with other than output_tokens tokens.
absl::StatusOr<RunResult> RunOnServer(const std::string& target,
                                      const Workload& workload);

}  // namespace binarymos
