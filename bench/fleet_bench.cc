#include "bench/fleet_bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "bench/workload.h"
#include "engine/api/model_runner.h"
#include "engine/core/check.h"
#include "scheduler/serving_loop.h"

namespace binarymos {
namespace {

constexpr MonotonicTime kStart{std::chrono::hours(1)};
constexpr int kVocabSize = 32'000;

Duration FromSeconds(double seconds) {
  return std::chrono::duration_cast<Duration>(
      std::chrono::duration<double>(seconds));
}

double Seconds(Duration duration) {
  return std::chrono::duration<double>(duration).count();
}

// Answers every row with some token, and moves the clock.
class VirtualRunner : public ModelRunner {
 public:
  VirtualRunner(const StepCostModel& cost, MonotonicTime& now)
      : cost_(cost), now_(now) {}

  int max_steps_in_flight() const override { return 2; }
  void AddSequence(SlotId /*slot*/, const SequenceInit& /*init*/) override {}
  void RemoveSequence(SlotId /*slot*/) override {}

  absl::Status Submit(const BatchPlan& plan) override {
    const Duration length = cost_.Of(plan);
    device_free_ = std::max(device_free_, now_) + length;
    Step& step = steps_.emplace_back();
    step.end = device_free_;
    step.result.step = plan.step;
    step.result.stats.compute_time = length;
    for (const BatchRow& row : plan.rows) {
      StepResultRow& result = step.result.rows.emplace_back();
      result.slot = row.slot;
      result.token = row.sample ? kVocabSize - 1 : kNoToken;
    }
    return absl::OkStatus();
  }

  absl::Status Wait(StepResult& result) override {
    now_ = std::max(now_, steps_.front().end);
    result = std::move(steps_.front().result);
    steps_.pop_front();
    return absl::OkStatus();
  }

  void SetProgressCallback(std::function<void()> /*callback*/) override {}

 private:
  struct Step {
    MonotonicTime end;
    StepResult result;
  };

  const StepCostModel cost_;
  MonotonicTime& now_;
  MonotonicTime device_free_ = kStart;
  std::deque<Step> steps_;
};

class Fleet {
 public:
  explicit Fleet(const FleetBenchOptions& options)
      : options_(options),
        runner_(options.cost, now_),
        loop_(runner_, {.cache = options.cache}, QueueLimits{},
              [this] { return now_; }) {
    MakeRequests();
  }

  FleetBenchRow Run() {
    size_t num_arrived = 0;
    while (true) {
      while (num_arrived < clients_.size() &&
             clients_[num_arrived].request->arrival <= now_) {
        Arrive(clients_[num_arrived++]);
      }
      const bool busy = loop_.Step(now_);
      for (const size_t client : ready_) Read(clients_[client]);
      ready_.clear();
      if (busy) continue;
      if (num_arrived == clients_.size()) break;
      now_ = std::max(now_, clients_[num_arrived].request->arrival);
    }
    loop_.Stop();
    return Summary();
  }

 private:
  struct Client {
    std::shared_ptr<Request> request;
    std::optional<MonotonicTime> first_token;
    MonotonicTime last_token;
    int num_tokens = 0;
  };

  void MakeRequests() {
    std::mt19937_64 random(1);
    std::exponential_distribution<double> interval(options_.rate);
    std::lognormal_distribution<double> prompt(std::log(options_.prompt_tokens),
                                               0.8);
    std::lognormal_distribution<double> output(std::log(options_.output_tokens),
                                               0.6);
    const int longest = options_.cache.max_model_len;
    const int capacity = options_.cache.num_blocks * options_.cache.block_size;
    const int limit = std::min(longest, capacity) - 1;
    MonotonicTime time = kStart;
    for (int i = 0; i < options_.num_requests; ++i) {
      time += FromSeconds(interval(random));
      auto request = std::make_shared<Request>();
      request->id = static_cast<RequestId>(i) + 1;
      request->arrival = time;
      const int num_own = std::clamp(static_cast<int>(prompt(random)), 1,
                                     std::max(1, limit / 2));
      request->prompt = PromptTokens({.prompt_tokens = options_.common_tokens},
                                     /*stream=*/-2, kVocabSize);
      const std::vector<TokenId> own =
          PromptTokens({.prompt_tokens = num_own}, i, kVocabSize);
      request->prompt.insert(request->prompt.end(), own.begin(), own.end());
      request->max_tokens =
          std::clamp(static_cast<int>(output(random)), 1,
                     limit - static_cast<int>(request->prompt.size()));
      request->stream = std::make_shared<TokenStream>(
          [this, i] { ready_.push_back(static_cast<size_t>(i)); });
      clients_.push_back({.request = std::move(request)});
    }
  }

  void Arrive(Client& client) {
    auto place = loop_.queue().TryReserve(
        {.num_tokens = std::ssize(client.request->prompt), .now = now_});
    if (!place.ok()) {
      ++num_refused_;
      return;
    }
    loop_.queue().Push(SubmitCommand{client.request, *std::move(place)});
  }

  void Read(Client& client) {
    client.request->stream->Drain(events_);
    for (const TokenEvent& event : events_) {
      if (event.token == kNoToken) continue;
      if (!client.first_token) {
        client.first_token = now_;
      } else {
        itl_.push_back(Seconds(now_ - client.last_token));
      }
      client.last_token = now_;
      ++client.num_tokens;
    }
    events_.clear();
  }

  FleetBenchRow Summary() const {
    FleetBenchRow row;
    row.rate = options_.rate;
    std::vector<double> ttft;
    int64_t num_tokens = 0;
    int num_good = 0;
    for (const Client& client : clients_) {
      if (!client.first_token) continue;
      ttft.push_back(Seconds(*client.first_token - client.request->arrival));
      num_tokens += client.num_tokens;
      const double per_token =
          Seconds(client.last_token - *client.first_token) /
          std::max(1, client.num_tokens - 1);
      num_good += ttft.back() <= options_.first_token_slo_seconds &&
                  per_token <= options_.token_slo_seconds;
    }
    const double seconds = Seconds(now_ - clients_.front().request->arrival);
    row.tokens_per_second = static_cast<double>(num_tokens) / seconds;
    row.requests_per_second = static_cast<double>(ttft.size()) / seconds;
    row.good_requests_per_second = num_good / seconds;
    row.ttft_p50 = Quantile(ttft, 0.5);
    row.ttft_p99 = Quantile(ttft, 0.99);
    row.itl_p50 = Quantile(itl_, 0.5);
    row.itl_p99 = Quantile(itl_, 0.99);
    row.num_refused = num_refused_;
    const SchedulerStats stats = loop_.status().stats();
    row.tokens_per_step = static_cast<double>(stats.step_tokens.sum) /
                          static_cast<double>(stats.num_steps);
    row.num_preemptions = stats.num_preemptions;
    return row;
  }

  const FleetBenchOptions options_;
  MonotonicTime now_ = kStart;
  VirtualRunner runner_;
  ServingLoop loop_;
  std::vector<Client> clients_;
  std::vector<size_t> ready_;
  std::vector<TokenEvent> events_;
  std::vector<double> itl_;
  int num_refused_ = 0;
};

}  // namespace

Duration StepCostModel::Of(const BatchPlan& plan) const {
  double microseconds = fixed_us + token_us * plan.num_tokens;
  for (const BatchRow& row : plan.rows) {
    microseconds += context_token_us * (row.first_position + row.num_tokens());
    if (row.sample) microseconds += sampled_row_us;
  }
  return FromSeconds(1e-6 * microseconds);
}

FleetBenchRow BenchFleet(const FleetBenchOptions& options) {
  BINARYMOS_CHECK_GT(options.num_requests, 0);
  return Fleet(options).Run();
}

}  // namespace binarymos
