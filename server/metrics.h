// Prometheus metrics. prometheus-cpp appears in metrics.cc only.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "scheduler/loop_status.h"
#include "scheduler/token_stream.h"

namespace binarymos {

// What a request looked like when it ended, for histograms and counters.
struct RequestRecord {
  int num_samples = 1;
  int max_tokens = 0;
  int num_prompt_tokens = 0;
  int num_cached_tokens = 0;
  int num_generated_tokens = 0;
  // "stop" (EOS, stop token, stop string), "length", "abort" (cancelled,
  // deadline, server shutdown) or "error".
  std::string finished_reason;
  absl::Status status;  // what the client was told
  RequestTimes times;   // of sample 0
};

// Owns the registry and, if asked, the HTTP server that exposes /metrics.
// Thread-safe. Owned by Server.
class Metrics {
 public:
  struct Options {
    std::string model_name;
    bool vllm_names = true;
    std::string http_address;  // "127.0.0.1:8080"; port 0: any free port;
                               // empty: no HTTP server
    std::string version;
  };

  // Families exist from the start, so the first scrape shows every name.
  // `status` is read at each scrape and outlives this object.
  // UNAVAILABLE if the address cannot be bound.
  static absl::StatusOr<std::unique_ptr<Metrics>> Create(
      const Options& options, const ModelInfo& model,
      const CacheConfig& cache_config, const LoopStatus* status);
  virtual ~Metrics() = default;

  virtual int http_port() const = 0;  // -1 if there is no HTTP server

  virtual void RecordRequest(const RequestRecord& record) = 0;
  // A request refused before it reached the queue, by status code name
  // ("RESOURCE_EXHAUSTED") and reason ("queue_full", "draining", "invalid",
  // ...).
  virtual void RecordRejection(const absl::Status& status,
                               const std::string& reason) = 0;
  // Time between two tokens that reached the reader's side.
  virtual void RecordInterTokenLatency(Duration latency) = 0;
  // Streams that are open now.
  virtual void AddOpenStreams(int delta) = 0;

  // The exposition text, as /metrics gives it.
  virtual std::string Render() const = 0;
};

}  // namespace binarymos
