// binarymos health: asks grpc.health.v1.Health, for probes and scripts.
#include <google/protobuf/wrappers.pb.h>
#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/impl/codegen/proto_utils.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "cli/client.h"
#include "cli/command.h"

namespace binarymos {
namespace {

// On the wire HealthCheckRequest is a StringValue (field 1, string) and
// HealthCheckResponse an Int32Value (field 1, an enum's number), so the
// protocol needs no generated code of its own.
using HealthCheckRequest = google::protobuf::StringValue;
using HealthCheckResponse = google::protobuf::Int32Value;
using HealthStub =
    grpc::TemplatedGenericStub<HealthCheckRequest, HealthCheckResponse>;

constexpr int kServing = 1;

const char* ServingStatusName(int status) {
  switch (status) {
    case kServing:
      return "SERVING";
    case 2:
      return "NOT_SERVING";
    case 3:
      return "SERVICE_UNKNOWN";
    default:
      return "UNKNOWN";
  }
}

using WallTime = std::chrono::system_clock::time_point;

// ServingStatus of `service`; the status of the RPC if it fails.
absl::StatusOr<int> Check(HealthStub& stub, const std::string& service,
                          WallTime deadline) {
  grpc::ClientContext context;
  context.set_deadline(deadline);
  HealthCheckRequest request;
  request.set_value(service);
  grpc::CompletionQueue queue;
  const auto call = stub.PrepareUnaryCall(
      &context, "/grpc.health.v1.Health/Check", request, &queue);
  call->StartCall();
  HealthCheckResponse response;
  grpc::Status status;
  call->Finish(&response, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  queue.Shutdown();
  while (queue.Next(&tag, &ok)) {
  }
  if (!status.ok()) return FromGrpc(status);
  return response.value();
}

struct HealthOptions {
  std::string server = kDefaultServer;
  std::string service;
  std::string timeout = "1s";
  std::string wait = "0s";
  bool quiet = false;
};

int Run(const HealthOptions& options) {
  absl::Duration timeout;
  absl::Duration wait;
  if (!absl::ParseDuration(options.timeout, &timeout) ||
      timeout <= absl::ZeroDuration()) {
    return FailUsage(absl::StrCat("--timeout: '", options.timeout,
                                  "' is not a duration such as 500ms or 1s"));
  }
  if (!absl::ParseDuration(options.wait, &wait)) {
    return FailUsage(absl::StrCat("--wait: '", options.wait,
                                  "' is not a duration such as 30s"));
  }
  const WallTime give_up =
      std::chrono::system_clock::now() + absl::ToChronoMilliseconds(wait);
  while (true) {
    // A new channel every time: a probe must show that the listener accepts.
    HealthStub stub(OpenChannel(options.server));
    const WallTime now = std::chrono::system_clock::now();
    const absl::StatusOr<int> serving =
        Check(stub, options.service, now + absl::ToChronoMilliseconds(timeout));
    if (serving.ok() && *serving == kServing) {
      if (!options.quiet) std::puts(ServingStatusName(*serving));
      return kExitOk;
    }
    const auto pause = std::chrono::milliseconds(100);
    if (std::chrono::system_clock::now() + pause >= give_up) {
      if (!serving.ok()) return Fail(serving.status());
      if (!options.quiet) std::puts(ServingStatusName(*serving));
      return kExitFailure;
    }
    std::this_thread::sleep_for(pause);
  }
}

}  // namespace

Command AddHealthCommand(CLI::App& app) {
  CLI::App* health =
      app.add_subcommand("health", "Ask a server whether it is serving");
  auto options = std::make_shared<HealthOptions>();
  health->add_option("--server", options->server, "Address of the server")
      ->capture_default_str();
  health->add_option("--service", options->service,
                     "liveness, readiness, a gRPC service, or absent: the "
                     "whole server");
  health->add_option("--timeout", options->timeout, "Deadline of one question")
      ->capture_default_str();
  health
      ->add_option("--wait", options->wait,
                   "Go on asking so long for it to become SERVING")
      ->capture_default_str();
  health->add_flag("--quiet", options->quiet, "Print no status");
  health->footer("Exit codes: 0 SERVING, 1 anything else, 2 usage.");
  return {health, [options] { return Run(*options); }};
}

}  // namespace binarymos
