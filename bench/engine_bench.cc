#include "bench/engine_bench.h"

#include <chrono>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/core/mutex.h"
#include "scheduler/serving_loop.h"

namespace binarymos {
namespace {

double SecondsBetween(MonotonicTime begin, MonotonicTime end) {
  return std::chrono::duration<double>(end - begin).count();
}

// Drains all streams on one thread, woken by whichever has something.
class Collector {
 public:
  explicit Collector(const Workload& workload)
      : expected_(workload.output_tokens), progress_(workload.streams) {
    for (Progress& progress : progress_) {
      progress.stream = std::make_shared<TokenStream>([this] { Wake(); });
    }
  }

  const std::shared_ptr<TokenStream>& stream(int i) const {
    return progress_[i].stream;
  }

  // Blocks until every stream has ended.
  absl::StatusOr<RunResult> Collect(MonotonicTime start) {
    RunResult result;
    size_t num_ended = 0;
    while (num_ended < progress_.size()) {
      WaitForWake();
      for (Progress& progress : progress_) {
        auto ended = DrainOne(progress, start, result);
        if (!ended.ok()) return ended.status();
        num_ended += *ended ? 1 : 0;
      }
    }
    result.wall_seconds =
        SecondsBetween(start, std::chrono::steady_clock::now());
    return result;
  }

 private:
  struct Progress {
    std::shared_ptr<TokenStream> stream;
    int num_tokens = 0;
    MonotonicTime last{};
  };

  void Wake() {
    MutexLock lock(mutex_);
    awake_ = true;
    wake_.NotifyOne();
  }
  void WaitForWake() {
    MutexLock lock(mutex_);
    while (!awake_) wake_.Wait(mutex_);
    awake_ = false;
  }

  // Whether this stream ended now.
  absl::StatusOr<bool> DrainOne(Progress& progress, MonotonicTime start,
                                RunResult& result) {
    events_.clear();
    progress.stream->Drain(events_);
    for (const TokenEvent& event : events_) {
      const MonotonicTime now = std::chrono::steady_clock::now();
      if (event.token != kNoToken) {
        ++result.num_tokens;
        if (progress.num_tokens++ == 0) {
          result.ttft_seconds.push_back(SecondsBetween(start, now));
        } else {
          result.itl_seconds.push_back(SecondsBetween(progress.last, now));
        }
        progress.last = now;
      }
      if (!event.finish.has_value()) continue;
      if (!event.finish->status.ok()) return event.finish->status;
      if (progress.num_tokens != expected_) {
        return absl::InternalError(
            absl::StrCat("a stream ended after ", progress.num_tokens,
                         " tokens instead of ", expected_));
      }
      return true;
    }
    return false;
  }

  const int expected_;
  std::vector<Progress> progress_;  // Collect's thread only
  std::vector<TokenEvent> events_;

  Mutex mutex_;
  CondVar wake_;
  bool awake_ ABSL_GUARDED_BY(mutex_) = false;
};

std::shared_ptr<const Request> MakeRequest(const Workload& workload, int stream,
                                           int vocab_size,
                                           std::shared_ptr<TokenStream> tokens,
                                           MonotonicTime now) {
  auto request = std::make_shared<Request>();
  request->id = static_cast<RequestId>(stream) + 1;
  request->tenant = stream < workload.streams ? "" : "flood";
  request->external_id = absl::StrCat("bench-", stream);
  request->prompt = PromptTokens(workload, stream, vocab_size);
  request->sampling.temperature = 0;
  request->max_tokens = workload.output_tokens;
  request->arrival = now;
  request->stream = std::move(tokens);
  return request;
}

}  // namespace

absl::StatusOr<RunResult> RunOnEngine(Engine& engine, const Workload& workload,
                                      const EngineBenchOptions& options) {
  Collector collector(workload);
  ServingLoop loop(
      engine.runner(),
      {.cache = engine.cache_config(),
       .prefix_caching = options.prefix_caching},
      QueueLimits{.max_waiting_requests = 0, .max_waiting_tokens = 0});
  loop.Start();

  const double cpu_before = ProcessCpuSeconds();
  const MonotonicTime start = std::chrono::steady_clock::now();
  const auto send = [&](int stream, std::shared_ptr<TokenStream> tokens) {
    auto request = MakeRequest(workload, stream, engine.info().vocab_size,
                               std::move(tokens), start);
    auto reservation =
        loop.queue().TryReserve({.tenant = request->tenant,
                                 .num_tokens = workload.prompt_tokens,
                                 .now = start});
    if (!reservation.ok()) return reservation.status();
    loop.queue().Push(
        SubmitCommand{std::move(request), *std::move(reservation)});
    return absl::OkStatus();
  };
  for (int i = 0; i < options.flood; ++i) {
    const absl::Status status =
        send(workload.streams + i, std::make_shared<TokenStream>(nullptr));
    if (!status.ok()) return status;
  }
  for (int i = 0; i < workload.streams; ++i) {
    const absl::Status status = send(i, collector.stream(i));
    if (!status.ok()) return status;
  }
  absl::StatusOr<RunResult> result = collector.Collect(start);
  if (result.ok()) {
    result->process_seconds = ProcessCpuSeconds() - cpu_before;
    result->num_prompt_tokens = loop.status().stats().num_prompt_tokens;
  }
  loop.Stop();
  return result;
}

}  // namespace binarymos
