// The gRPC server proper: ports, limits, keepalive, reflection.
#pragma once

#include <grpcpp/server.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/config.h"

namespace binarymos {

struct GrpcListener {
  std::unique_ptr<grpc::Server> server;
  int port = 0;
};

// Binds config.host:config.grpc_port and serves `services` (which outlive the
// server), grpc.health.v1.Health and, if configured, reflection. UNAVAILABLE if
// the port cannot be bound.
absl::StatusOr<GrpcListener> Listen(
    const ServerConfig& config, const std::vector<grpc::Service*>& services);

// "host:port"; IPv6 addresses get their brackets.
std::string JoinHostPort(const std::string& host, int port);

}  // namespace binarymos
