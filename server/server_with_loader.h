// Server::Start with the loading of the engine left open, for tests.
#pragma once

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "server/server.h"

namespace binarymos {

// Loads the engine while `server` already listens.
using EngineLoader =
    std::function<absl::StatusOr<std::unique_ptr<Engine>>(Server& server)>;

// As Server::Start, but for Validate.
absl::StatusOr<std::unique_ptr<Server>> StartServer(const ServerConfig& config,
                                                    const EngineLoader& load);

}  // namespace binarymos
