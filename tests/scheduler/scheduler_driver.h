// Drives a Scheduler and a FakeModelRunner on a virtual clock.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "scheduler/scheduler.h"
#include "tests/scheduler/fake_model_runner.h"

namespace binarymos {

// A small configuration: blocks of 4 positions.
SchedulerOptions SmallOptions(int num_blocks = 64);

// A request with distinct tokens, that neither EOS nor a stop token ends.
std::shared_ptr<Request> MakeRequest(RequestId id, int num_prompt_tokens,
                                     int max_tokens);

// What came out for one (request, sample).
struct SampleOutput {
  std::vector<TokenId> tokens;
  std::vector<PositionLogprobs> logprobs;
  std::vector<PositionLogprobs> prompt_logprobs;
  std::vector<Finish> finishes;

  bool ended() const { return !finishes.empty(); }
};

class SchedulerDriver {
 public:
  explicit SchedulerDriver(const SchedulerOptions& options, int depth = 1);

  // One turn as ServingLoop does it, checking every invariant of
  // SchedulerTestPeer after each call, and one tick of the clock. False: there
  // was nothing to do.
  bool Step();
  // Steps until nothing is left. False: there is no end.
  bool RunToEnd(int max_steps = 10000);

  void Add(std::shared_ptr<const Request> request);
  void Abort(RequestId id, const absl::Status& status);
  void StopAt(RequestId id, int sample, int num_tokens);
  void Collect();

  SampleOutput& output(RequestId id, int sample = 0) {
    return outputs_[{id, sample}];
  }
  const std::map<std::pair<RequestId, int>, SampleOutput>& outputs() const {
    return outputs_;
  }
  MonotonicTime now() const { return now_; }
  // Rows of the last plan, by slot.
  const BatchPlan& plan() const { return *plan_; }

  Scheduler scheduler;
  FakeModelRunner runner;
  static constexpr Duration kTick = std::chrono::milliseconds(1);

 private:
  MonotonicTime now_{std::chrono::seconds(1000)};
  const BatchPlan* plan_ = nullptr;
  StepResult result_;
  std::vector<StreamEvent> events_;
  std::map<std::pair<RequestId, int>, SampleOutput> outputs_;
  std::map<RequestId, int> num_requests_ended_;
};

}  // namespace binarymos
