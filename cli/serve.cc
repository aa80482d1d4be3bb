// binarymos serve: the server until a signal, or Control.Drain, ends it.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cli/command.h"
#include "cli/option_table.h"
#include "cli/serve_options.h"
#include "cli/signals.h"
#include "server/logging.h"
#include "server/server.h"

namespace binarymos {
namespace {

// Joins the signals, which may come before there is a server, to the server.
class Lifecycle {
 public:
  // The first signal drains, every further one stops. Before there is a server
  // nobody waits for anything, so the process ends at once.
  void OnSignal() {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++num_signals_;
    if (server_ == nullptr) {
      Log(LogLevel::kInfo, "stopped by a signal before serving");
      std::_Exit(kExitOk);
    }
    if (num_signals_ == 1) {
      Log(LogLevel::kInfo, "draining; a second signal stops at once");
      server_->RequestDrain();
    } else {
      Log(LogLevel::kWarn, "stopping at once");
      server_->RequestStop();
    }
  }

  // `server` outlives the signals.
  void SetServer(Server* server) {
    const std::lock_guard<std::mutex> lock(mutex_);
    server_ = server;
  }

 private:
  std::mutex mutex_;
  Server* server_ = nullptr;
  int num_signals_ = 0;
};

// Readers see the whole file or none.
absl::Status WritePortFile(const std::string& path, const Server& server) {
  const std::string temporary = path + ".tmp";
  std::ofstream file(temporary);
  file << "grpc=" << server.grpc_port() << "\nhttp=" << server.http_port()
       << "\n";
  file.close();
  if (!file || std::rename(temporary.c_str(), path.c_str()) != 0) {
    return absl::PermissionDeniedError(
        absl::StrCat("cannot write the port file ", path));
  }
  return absl::OkStatus();
}

int Serve(const ServeOptions& options) {
  const ServerConfig& config = options.config;
  Lifecycle lifecycle;
  std::unique_ptr<Server> server;  // outlives the signals
  SignalWatcher signals([&lifecycle] { lifecycle.OnSignal(); });

  absl::StatusOr<std::unique_ptr<Server>> started = Server::Start(config);
  if (!started.ok()) return Fail(started.status());
  server = *std::move(started);
  lifecycle.SetServer(server.get());
  if (!options.port_file.empty()) {
    const absl::Status written = WritePortFile(options.port_file, *server);
    if (!written.ok()) return Fail(written);
  }
  Log(LogLevel::kInfo, "serving",
      {{"grpc", absl::StrCat(config.host, ":", server->grpc_port())},
       {"http", server->http_port() < 0
                    ? std::string("off")
                    : absl::StrCat(config.host, ":", server->http_port())}});
  const absl::Status ended = server->Wait();
  if (!ended.ok()) return Fail(ended);
  Log(LogLevel::kInfo, "ended");
  return kExitOk;
}

int Run(const ServeOptions& options, OptionTable& table, bool print_config) {
  absl::Status status = table.Load(environ);
  if (!status.ok()) return FailUsage(std::string(status.message()));
  if (print_config) std::printf("%s", table.ToToml().c_str());
  status = Validate(options.config);
  if (!status.ok()) return FailUsage(std::string(status.message()));
  if (print_config) return kExitOk;
  status = InitLogging({options.config.log_level, options.config.log_format});
  if (!status.ok()) return FailUsage(std::string(status.message()));
  return Serve(options);
}

}  // namespace

Command AddServeCommand(CLI::App& app) {
  CLI::App* serve = app.add_subcommand("serve", "Serve a model over gRPC");
  auto options = std::make_shared<ServeOptions>();
  auto table = std::make_shared<OptionTable>();
  auto print_config = std::make_shared<bool>(false);
  AddServeOptions(*options, *table);
  table->AddFlags(*serve);
  serve
      ->add_flag("--print-config", *print_config,
                 "Print every option with its value and origin, and end")
      ->group("Configuration");
  serve->footer(
      "An option can also be set by a variable (--grpc-port: "
      "BINARYMOS_GRPC_PORT)\nor in the TOML file (grpc-port = 9000). Flags "
      "beat "
      "variables, variables beat\nthe file.\n\n"
      "SIGTERM or SIGINT drains: health turns NOT_SERVING, streams finish. A "
      "second\none stops at once.\n\n"
      "Exit codes: 0 drained, 1 failure (or streams cut by the drain timeout), "
      "2 usage.");
  return {serve, [options, table, print_config] {
            return Run(*options, *table, *print_config);
          }};
}

}  // namespace binarymos
