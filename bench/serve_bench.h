// What serving costs: the same workload through the in-process loop and through
// gRPC, alternating, in one run.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/workload.h"
#include "engine/engine.h"

namespace binarymos {

struct ServeBenchOptions {
  EngineOptions engine;
  std::vector<int> streams = {1, 16};  // a row for each
  Workload workload;                   // but for streams and seed
  int repeats = 5;                     // of each side, alternating
};

// Medians over the repeats.
struct ServeBenchRow {
  int streams = 0;
  int64_t num_tokens = 0;  // generated in one run, all streams
  double engine_tokens_per_second = 0;
  double serve_tokens_per_second = 0;
  double engine_cpu_per_token = 0;  // seconds, process with the engine
  double serve_cpu_per_token = 0;   // same; the client is another process
  double serve_ttft_p50 = 0;
  double serve_itl_p50 = 0;
  double serve_itl_p99 = 0;

  double ratio() const {
    return serve_tokens_per_second / engine_tokens_per_second;
  }
  double overhead_seconds_per_token() const {
    return serve_cpu_per_token - engine_cpu_per_token;
  }
};

// The load comes from a child process, `/proc/self/exe bench load`, so that the
// client's CPU time is not counted as the server's.
absl::StatusOr<std::vector<ServeBenchRow>> RunServeBench(
    const ServeBenchOptions& options);

// Lines of `bench load --json`, which RunServeBench reads back.
std::string ToJson(const RunResult& result);
absl::StatusOr<RunResult> RunResultFromJson(const std::string& json);

}  // namespace binarymos
