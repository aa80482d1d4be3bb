// absl::Status to grpc::Status: the only mapping.
#pragma once

#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace binarymos {

// Code and message stay. Payloads of `status` (their keys are type URLs, their
// values serialized messages) become the details of a google.rpc.Status, which
// clients find in grpc-status-details-bin.
grpc::Status ToGrpcStatus(const absl::Status& status);

}  // namespace binarymos
