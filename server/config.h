// Everything that can be configured about `binarymos serve`, in one struct.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "engine/engine.h"

namespace binarymos {

// Filled in by cli/serve.cc from flags, environment (BINARYMOS_*), a TOML file
// and these defaults, in that order of precedence; nobody else reads those.
struct ServerConfig {
  // --- Model ---
  EngineOptions engine;           // engine.model_dir is required
  std::string served_model_name;  // empty: last component of model_dir

  // --- Network ---
  std::string host = "127.0.0.1";
  int grpc_port = 9000;  // 0: any free port, reported by Server::grpc_port
  int http_port = 8080;  // metrics; 0: any free port; -1: no HTTP server
  bool reflection = true;
  int64_t max_message_bytes = 16 << 20;
  std::chrono::milliseconds keepalive_time{30'000};
  std::chrono::milliseconds keepalive_timeout{20'000};
  std::chrono::milliseconds min_ping_interval{10'000};
  std::chrono::milliseconds max_connection_age{0};        // 0: no limit
  std::chrono::milliseconds max_connection_age_grace{0};  // 0: no limit
  int max_concurrent_streams = 1024;                      // per connection

  // --- Scheduling ---
  int max_waiting_requests = 256;                   // 0: no limit
  int64_t max_waiting_tokens = 0;                   // 0: no limit
  int max_waiting_requests_per_tenant = 0;          // 0: no limit
  int64_t max_waiting_tokens_per_tenant = 0;        // 0: no limit
  std::chrono::milliseconds max_estimated_wait{0};  // 0: no limit
  bool prefix_caching = true;
  int long_prefill_token_threshold = 0;  // 0: no limit but the budget

  // --- Streams ---
  int text_threads = 2;                     // tokenize, detokenize, write
  int64_t stream_buffer_bytes = 256 << 10;  // unread output of one stream;
                                            // past it the request ends with
                                            // RESOURCE_EXHAUSTED
  std::chrono::milliseconds write_stall_timeout{30'000};  // 0: no limit
  int default_max_tokens = 256;

  // --- Shutdown ---
  std::chrono::milliseconds drain_delay{0};
  std::chrono::milliseconds drain_timeout{30'000};

  // --- Logs and metrics ---
  std::string log_level = "info";   // trace, debug, info, warn, error, off
  std::string log_format = "auto";  // text, json; auto: text on a terminal
  bool vllm_metric_names = true;    // also export the five names routers read
};

// INVALID_ARGUMENT naming the option, the value and what is allowed.
absl::Status Validate(const ServerConfig& config);

}  // namespace binarymos
