// The real scheduler, cache, queue and streams on a virtual clock.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "scheduler/serving_loop.h"
#include "tests/simulation/order_checker.h"
#include "tests/simulation/scenario.h"
#include "tests/simulation/timed_runner.h"

namespace binarymos {

// What a client saw of one sample.
struct SampleSeen {
  std::vector<TokenId> tokens;
  std::vector<PositionLogprobs> logprobs;         // of `tokens`
  std::vector<PositionLogprobs> prompt_logprobs;  // before the first token
  std::optional<Finish> finish;
};

// What became of a client.
struct ClientSeen {
  enum class Progress { kNotYet, kRefused, kTokenizing, kSubmitted };

  Progress progress = Progress::kNotYet;
  QueueRefusal refusal;  // of kRefused
  Reservation reservation;
  std::vector<SampleSeen> samples;
  int num_ended = 0;  // samples
  MonotonicTime next_read{};
  std::optional<int> left;    // the turn that it asked to be aborted before
  std::vector<bool> stopped;  // by sample: asked for StopAt
  std::vector<bool> stopped_ahead;  // by sample: before it had as many tokens
};

// Runs a scenario to its end and reports as test failures whatever must never
// be, after every call of the scheduler:
// - a request, sample without exactly one end, or with tokens after it;
// - tokens or log-probabilities that differ from what the model gives to the
//   request alone, or tokens past a stop that was known before;
// - blocks or slots that are leaked, freed twice, shared by mistake, or taken
//   from a step in flight; reference counts that do not equal owners;
// - plans past the budget, or that do not continue their sequences;
// - places in the queue that do not come back, or limits that are passed;
// - a request that lives past its abort or its limits of time by more than one
//   turn of the loop;
// - work that waits while the loop finds nothing to do;
// - times out of order;
// - what OrderChecker reports.
class Simulation {
 public:
  explicit Simulation(Scenario scenario);
  void Run();

  // Called after every turn, if set.
  std::function<void()> on_turn;

  const Scenario& scenario() const { return scenario_; }
  const std::vector<ClientSeen>& clients() const { return clients_; }
  const SchedulerStats stats() const { return loop_.status().stats(); }
  int64_t num_tokens_computed() { return runner_.fake().num_tokens_computed(); }
  MonotonicTime now() const { return now_; }
  const OrderChecker& order() const { return order_; }

 private:
  // What happens outside of the loop.
  void Act();
  void Arrive(size_t client);
  QueueClaim ClaimOf(size_t client) const;
  void Submit(size_t client);
  void Leave(size_t client);
  void ReadAll();
  void Read(size_t client);
  void Take(size_t client, TokenEvent event);
  void React(size_t client, int sample);
  std::optional<MonotonicTime> NextAction() const;

  // What must hold.
  void CheckPlan(const BatchPlan& plan);
  void CheckTurn(MonotonicTime begin);
  std::optional<MonotonicTime> LimitOf(size_t client) const;
  void CheckRefusal(size_t client, const absl::Status& status);
  int NumSubmittedAndNotStarted() const;
  void CheckQueue();
  void CheckIdle();
  void CheckEnd(size_t client, int sample);
  void CheckLogprobs(const Request& request, int sample,
                     const SampleSeen& seen);
  void CheckDeadline(size_t client, MonotonicTime end);
  void CheckError(const Request& request, const Finish& finish,
                  const ReferenceOutput& reference, bool whole);

  const Request& request(size_t client) const {
    return *scenario_.clients[client].request;
  }
  bool Active(size_t client) const;
  bool failed_on_purpose() const {
    return scenario_.fail_submit_at >= 0 || scenario_.fail_wait_at >= 0;
  }

  const Scenario scenario_;
  MonotonicTime now_ = kBeginning;
  int turn_ = 0;  // of the loop; the next one to begin, between turns
  TimedRunner runner_;
  ServingLoop loop_;
  OrderChecker order_;
  std::vector<ClientSeen> clients_;
  size_t num_arrived_ = 0;
  std::vector<size_t> live_;  // clients that have arrived, and not ended
  int num_submitted_ = 0;     // since the last turn
  size_t num_flushed_ = 0;
  bool closed_ = false;
  bool aborted_all_ = false;
  std::vector<TokenEvent> events_;
};

}  // namespace binarymos
