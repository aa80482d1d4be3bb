#include "server/grpc_listener.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>

#include <algorithm>
#include <limits>
#include <mutex>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace binarymos {
namespace {

// Reflection for this server or not: linked in, gRPC's own switch turns it on
// for all servers of the process.
class ReflectionOption : public grpc::ServerBuilderOption {
 public:
  explicit ReflectionOption(bool enabled) : enabled_(enabled) {}

  void UpdateArguments(grpc::ChannelArguments* /*arguments*/) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>*
                         plugins) override {
    using grpc::reflection::ProtoServerReflectionPlugin;
    auto reflection = std::make_unique<ProtoServerReflectionPlugin>();
    const std::string name = reflection->name();
    std::erase_if(*plugins,
                  [&](const auto& plugin) { return plugin->name() == name; });
    if (enabled_) plugins->push_back(std::move(reflection));
  }

 private:
  const bool enabled_;
};

int Clamp(int64_t value) {
  return static_cast<int>(
      std::min<int64_t>(value, std::numeric_limits<int>::max()));
}

void SetLimits(const ServerConfig& config, grpc::ServerBuilder& builder) {
  const auto set = [&](const char* name, int64_t value) {
    builder.AddChannelArgument(name, Clamp(value));
  };
  set(GRPC_ARG_KEEPALIVE_TIME_MS, config.keepalive_time.count());
  set(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, config.keepalive_timeout.count());
  set(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  set(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  set(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
      config.min_ping_interval.count());
  set(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 2);
  set(GRPC_ARG_MAX_CONCURRENT_STREAMS, config.max_concurrent_streams);
  if (config.max_connection_age.count() > 0) {
    set(GRPC_ARG_MAX_CONNECTION_AGE_MS, config.max_connection_age.count());
  }
  if (config.max_connection_age_grace.count() > 0) {
    set(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS,
        config.max_connection_age_grace.count());
  }
  // Two servers on one port would share its connections without a word.
  set(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.SetMaxReceiveMessageSize(Clamp(config.max_message_bytes));
}

}  // namespace

std::string JoinHostPort(const std::string& host, int port) {
  const bool bare_ipv6 =
      host.find(':') != std::string::npos && host.front() != '[';
  return bare_ipv6 ? absl::StrCat("[", host, "]:", port)
                   : absl::StrCat(host, ":", port);
}

absl::StatusOr<GrpcListener> Listen(
    const ServerConfig& config, const std::vector<grpc::Service*>& services) {
  static std::once_flag once;
  std::call_once(once, [] { grpc::EnableDefaultHealthCheckService(true); });

  grpc::ServerBuilder builder;
  SetLimits(config, builder);
  builder.SetOption(std::make_unique<ReflectionOption>(config.reflection));
  if (config.reflection) {
    // Reflection is the only synchronous service: a thread is enough.
    builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 2);
  }
  for (grpc::Service* service : services) builder.RegisterService(service);

  const std::string address = JoinHostPort(config.host, config.grpc_port);
  GrpcListener listener;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(),
                           &listener.port);
  listener.server = builder.BuildAndStart();
  if (listener.server == nullptr || listener.port == 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", address,
                     " for gRPC; is the port in use, the host an address of "
                     "this machine?"));
  }
  return listener;
}

}  // namespace binarymos
