// The process around the model: gRPC services, health, metrics, shutdown.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "server/config.h"

namespace binarymos {

// Lifecycle: Start -> (serving) -> RequestDrain, from any thread -> Wait
// returns. cli/serve.cc turns SIGTERM and SIGINT into RequestDrain, and a
// second signal into RequestStop.
class Server {
 public:
  // Binds ports (NOT_SERVING), loads the model, warms it up, turns SERVING.
  // Statuses of Validate, Engine::Load, and UNAVAILABLE for a port in use.
  static absl::StatusOr<std::unique_ptr<Server>> Start(
      const ServerConfig& config);

  // The same around an engine that is loaded already: tests, benchmarks.
  static absl::StatusOr<std::unique_ptr<Server>> StartWithEngine(
      const ServerConfig& config, std::unique_ptr<Engine> engine);

  virtual ~Server() = default;  // RequestStop() and Wait() if still serving

  virtual int grpc_port() const = 0;
  virtual int http_port() const = 0;

  // Readiness becomes NOT_SERVING at once; requests are accepted for
  // drain_delay, then refused; streams may finish within drain_timeout, then
  // end with UNAVAILABLE. Returns at once. Idempotent.
  virtual void RequestDrain() = 0;
  // Ends everything now. Returns at once. Idempotent.
  virtual void RequestStop() = 0;

  // Blocks until the server has ended. OK after a drain in which every stream
  // finished, DEADLINE_EXCEEDED if the drain timeout cut some, or the status
  // that ended the engine.
  virtual absl::Status Wait() = 0;
};

}  // namespace binarymos
