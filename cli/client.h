// What the subcommands that talk to a server share.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/support/status.h>

#include <memory>
#include <string>

#include "absl/status/status.h"

namespace binarymos {

inline constexpr char kDefaultServer[] = "127.0.0.1:9000";

// An unencrypted channel that accepts messages of any size.
std::shared_ptr<grpc::Channel> OpenChannel(const std::string& server);

// The same code and message; the two libraries number codes alike.
absl::Status FromGrpc(const grpc::Status& status);

}  // namespace binarymos
