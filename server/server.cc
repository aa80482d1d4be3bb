#include "server/server.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/core/mutex.h"
#include "scheduler/serving_loop.h"
#include "server/control_service.h"
#include "server/file_limit.h"
#include "server/generation_service.h"
#include "server/grpc_listener.h"
#include "server/health_service.h"
#include "server/inference_service.h"
#include "server/logging.h"
#include "server/metrics.h"
#include "server/model_registry.h"
#include "server/open_calls.h"
#include "server/server_with_loader.h"
#include "server/text_executor.h"
#include "server/version.h"

namespace binarymos {
namespace {

using Clock = std::chrono::steady_clock;

// How often the health of the loop is looked at.
constexpr std::chrono::milliseconds kHealthPeriod{250};
// What calls that were told to end get to do so.
constexpr std::chrono::milliseconds kGrace{1000};

std::string ModelName(const ServerConfig& config) {
  if (!config.served_model_name.empty()) return config.served_model_name;
  std::string dir = config.engine.model_dir;
  while (dir.size() > 1 && dir.back() == '/') dir.pop_back();
  const std::string name = dir.substr(dir.rfind('/') + 1);
  return name.empty() ? "model" : name;
}

class ServerImpl final : public Server {
 public:
  explicit ServerImpl(const ServerConfig& config);
  ~ServerImpl() override;

  absl::Status Bind();
  absl::Status Serve(std::unique_ptr<Engine> engine);

  int grpc_port() const override { return listener_.port; }
  int http_port() const override {
    return metrics_ == nullptr ? -1 : metrics_->http_port();
  }
  void RequestDrain() override;
  void RequestStop() override;
  absl::Status Wait() override;

 private:
  ControlService::Options ControlOptions();
  bool draining() const;

  // The rest runs on thread_: one step of the server's life after the other.
  void Main();
  absl::Status WatchUntilAskedToEnd();
  absl::Status Drain();
  void EndCalls();
  void EndGrpc();
  template <typename Done>
  bool WaitFor(Duration timeout, Done done);
  absl::Status LoopFailure() const;
  void OnIdle();

  const ServerConfig config_;
  const MonotonicTime start_time_ = Clock::now();

  // In the order in which they depend on each other.
  ModelRegistry registry_;
  std::unique_ptr<Metrics> metrics_;
  OpenCalls open_calls_;
  std::unique_ptr<TextExecutor> executor_;
  GenerationService generation_;
  InferenceService inference_;
  ControlService control_;
  GrpcListener listener_;

  ServedModel* model_ = nullptr;
  std::optional<HealthService> health_;  // Bind, Serve, then thread_
  std::thread thread_;

  mutable Mutex mutex_;
  mutable CondVar changed_;
  bool drain_ ABSL_GUARDED_BY(mutex_) = false;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status result_ ABSL_GUARDED_BY(mutex_);
};

ServerImpl::ServerImpl(const ServerConfig& config)
    : config_(config),
      open_calls_([this] { OnIdle(); }),
      executor_(std::make_unique<TextExecutor>(config.text_threads)),
      generation_({config.default_max_tokens}, &registry_, executor_.get()),
      inference_({&generation_, &open_calls_,
                  static_cast<size_t>(config.stream_buffer_bytes),
                  config.write_stall_timeout},
                 &registry_, executor_.get()),
      control_(ControlOptions(), &registry_, &generation_) {}

ServerImpl::~ServerImpl() {
  if (thread_.joinable()) {
    RequestStop();
    thread_.join();
  } else {
    EndGrpc();
  }
}

ControlService::Options ServerImpl::ControlOptions() {
  ControlService::Options options;
  options.start_time = start_time_;
  options.services = {"binarymos.v1.Inference", "binarymos.v1.Control",
                      "grpc.health.v1.Health"};
  if (config_.reflection) {
    options.services.push_back("grpc.reflection.v1alpha.ServerReflection");
  }
  options.draining = [this] { return draining(); };
  options.drain = [this] { RequestDrain(); };
  return options;
}

absl::Status ServerImpl::Bind() {
  absl::StatusOr<GrpcListener> listener =
      Listen(config_, {&inference_, &control_});
  if (!listener.ok()) return listener.status();
  listener_ = *std::move(listener);
  health_.emplace(listener_.server->GetHealthCheckService());
  Log(LogLevel::kInfo, "gRPC listens",
      {{"address", JoinHostPort(config_.host, listener_.port)},
       {"version", Version()},
       {"commit", GitCommit()}});
  return absl::OkStatus();
}

absl::Status ServerImpl::Serve(std::unique_ptr<Engine> engine) {
  SchedulerOptions options;
  options.cache = engine->cache_config();
  options.prefix_caching = config_.prefix_caching;
  options.long_prefill_token_threshold = config_.long_prefill_token_threshold;
  auto model = std::make_unique<ServedModel>(
      ModelName(config_), std::move(engine), options,
      QueueLimits{config_.max_waiting_requests, config_.max_waiting_tokens,
                  config_.max_waiting_requests_per_tenant,
                  config_.max_waiting_tokens_per_tenant,
                  config_.max_estimated_wait});

  Metrics::Options metrics_options;
  metrics_options.model_name = model->name();
  metrics_options.vllm_names = config_.vllm_metric_names;
  metrics_options.version = Version();
  if (config_.http_port >= 0) {
    metrics_options.http_address =
        JoinHostPort(config_.host, config_.http_port);
  }
  absl::StatusOr<std::unique_ptr<Metrics>> metrics =
      Metrics::Create(metrics_options, model->engine().info(),
                      model->engine().cache_config(), &model->loop().status());
  if (!metrics.ok()) return metrics.status();
  metrics_ = *std::move(metrics);
  generation_.SetMetrics(metrics_.get());

  model->loop().Start();
  model_ = &registry_.Add(std::move(model));
  health_->SetLoaded(&model_->loop().status());
  health_->Update(Clock::now());
  Log(LogLevel::kInfo, "ready",
      {{"model", model_->name()},
       {"device", model_->engine().info().device},
       {"device_note", model_->engine().info().device_note},
       {"max_model_len", model_->max_positions()},
       {"http_port", metrics_->http_port()}});
  thread_ = std::thread([this] { Main(); });
  return absl::OkStatus();
}

void ServerImpl::RequestDrain() {
  MutexLock lock(mutex_);
  drain_ = true;
  changed_.NotifyAll();
}

void ServerImpl::RequestStop() {
  MutexLock lock(mutex_);
  stop_ = true;
  changed_.NotifyAll();
}

absl::Status ServerImpl::Wait() {
  MutexLock lock(mutex_);
  while (!ended_) changed_.Wait(mutex_);
  return result_;
}

bool ServerImpl::draining() const {
  MutexLock lock(mutex_);
  return drain_ || stop_;
}

void ServerImpl::OnIdle() {
  MutexLock lock(mutex_);
  if (drain_ || stop_) changed_.NotifyAll();
}

// Keeps health current until `done()`, which is called with the lock held.
// False if the time ran out, or the loop failed, before that.
template <typename Done>
bool ServerImpl::WaitFor(Duration timeout, Done done) {
  const MonotonicTime deadline = Clock::now() + timeout;
  while (true) {
    const MonotonicTime now = Clock::now();
    health_->Update(now);
    MutexLock lock(mutex_);
    if (done()) return true;
    if (now >= deadline || !LoopFailure().ok()) return false;
    changed_.WaitUntil(mutex_, std::min(deadline, now + kHealthPeriod));
  }
}

absl::Status ServerImpl::LoopFailure() const {
  return model_->loop().status().status();
}

void ServerImpl::Main() {
  absl::Status result = WatchUntilAskedToEnd();
  if (result.ok()) result = Drain();
  EndCalls();
  // What ends the loop while it is told to stop counts, too.
  if (absl::Status failure = LoopFailure(); !failure.ok()) result = failure;
  EndGrpc();
  Log(result.ok() ? LogLevel::kInfo : LogLevel::kError, "ended",
      {{"status", absl::StatusCodeToString(result.code())},
       {"message", std::string(result.message())}});
  MutexLock lock(mutex_);
  result_ = std::move(result);
  ended_ = true;
  changed_.NotifyAll();
}

absl::Status ServerImpl::WatchUntilAskedToEnd() {
  constexpr auto kForever = std::chrono::hours(24 * 365 * 100);
  WaitFor(kForever, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return drain_ || stop_;
  });
  health_->SetDraining();
  health_->Update(Clock::now());
  return LoopFailure();
}

absl::Status ServerImpl::Drain() {
  const auto stopped = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stop_;
  };
  Log(LogLevel::kInfo, "draining",
      {{"open_calls", open_calls_.count()},
       {"delay_ms", config_.drain_delay.count()},
       {"timeout_ms", config_.drain_timeout.count()}});
  WaitFor(config_.drain_delay, stopped);
  model_->loop().queue().Close();
  const bool done = WaitFor(config_.drain_timeout,
                            [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
                              return stop_ || open_calls_.count() == 0;
                            });
  if (done || !LoopFailure().ok()) return LoopFailure();
  return absl::DeadlineExceededError(
      absl::StrCat("the drain timeout of ", config_.drain_timeout.count(),
                   " ms ended with ", open_calls_.count(), " calls open"));
}

// Tells the calls that are left, and sees them off.
void ServerImpl::EndCalls() {
  model_->loop().queue().Close();
  generation_.CancelAll(absl::UnavailableError(
      "the server shut down before the request had finished; send it again"));
  const auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return open_calls_.count() == 0;
  };
  {
    MutexLock lock(mutex_);
    stop_ = true;  // for OnIdle
  }
  WaitFor(kGrace, idle);
  model_->loop().Stop();  // ends requests that were on their way to the queue
  const MonotonicTime deadline = Clock::now() + kGrace;
  MutexLock lock(mutex_);
  while (!idle() && changed_.WaitUntil(mutex_, deadline)) {
  }
}

// Ends connections; calls whose readers do not read are cut.
void ServerImpl::EndGrpc() {
  if (listener_.server == nullptr) return;
  listener_.server->Shutdown(std::chrono::system_clock::now() + kGrace / 2);
  listener_.server.reset();
  executor_.reset();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> StartServer(const ServerConfig& config,
                                                    const EngineLoader& load) {
  RaiseFileLimit();
  auto server = std::make_unique<ServerImpl>(config);
  absl::Status status = server->Bind();
  if (!status.ok()) return status;
  absl::StatusOr<std::unique_ptr<Engine>> engine = load(*server);
  if (!engine.ok()) return engine.status();
  status = server->Serve(*std::move(engine));
  if (!status.ok()) return status;
  return server;
}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(
    const ServerConfig& config) {
  absl::Status status = Validate(config);
  if (!status.ok()) return status;
  return StartServer(config,
                     [&](Server&) { return Engine::Load(config.engine); });
}

absl::StatusOr<std::unique_ptr<Server>> Server::StartWithEngine(
    const ServerConfig& config, std::unique_ptr<Engine> engine) {
  return StartServer(config, [&](Server&) { return std::move(engine); });
}

}  // namespace binarymos
