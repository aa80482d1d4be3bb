#include "tests/scheduler/scheduler_driver.h"

#include <algorithm>
#include <iterator>

#include "gtest/gtest.h"
#include "tests/scheduler/scheduler_test_peer.h"

namespace binarymos {

SchedulerOptions SmallOptions(int num_blocks) {
  SchedulerOptions options;
  options.cache.num_blocks = num_blocks;
  options.cache.block_size = 4;
  options.cache.max_num_seqs = 8;
  options.cache.max_model_len = 256;
  options.cache.max_num_batched_tokens = 32;
  return options;
}

std::shared_ptr<Request> MakeRequest(RequestId id, int num_prompt_tokens,
                                     int max_tokens) {
  auto request = std::make_shared<Request>();
  request->id = id;
  for (int i = 0; i < num_prompt_tokens; ++i) {
    request->prompt.push_back(static_cast<TokenId>(id * 1000) + i);
  }
  request->max_tokens = max_tokens;
  request->arrival = MonotonicTime(std::chrono::microseconds(id));
  return request;
}

SchedulerDriver::SchedulerDriver(const SchedulerOptions& options, int depth)
    : scheduler(options), runner(options.cache, depth) {}

bool SchedulerDriver::Step() {
  now_ += kTick;
  const int num_before = scheduler.num_steps_in_flight();
  plan_ = &scheduler.Schedule(now_);
  SchedulerTestPeer::CheckInvariants(scheduler);
  for (const SlotOperation& operation : scheduler.slot_operations()) {
    if (operation.kind == SlotOperation::Kind::kAdd) {
      runner.AddSequence(operation.slot, operation.init);
    } else {
      runner.RemoveSequence(operation.slot);
    }
  }
  if (!plan_->empty()) {
    EXPECT_TRUE(runner.Submit(*plan_).ok());
  }
  const int num_in_flight = scheduler.num_steps_in_flight();
  if (num_in_flight > 0 && (num_in_flight == num_before ||
                            num_in_flight == runner.max_steps_in_flight())) {
    EXPECT_TRUE(runner.Wait(result_).ok());
    scheduler.Commit(result_, now_);
    SchedulerTestPeer::CheckInvariants(scheduler);
  }
  Collect();
  return num_in_flight > 0;
}

bool SchedulerDriver::RunToEnd(int max_steps) {
  for (int i = 0; i < max_steps; ++i) {
    if (!Step()) return scheduler.empty();
  }
  return false;
}

void SchedulerDriver::Add(std::shared_ptr<const Request> request) {
  scheduler.Add(std::move(request), now_);
  SchedulerTestPeer::CheckInvariants(scheduler);
  Collect();
}

void SchedulerDriver::Abort(RequestId id, const absl::Status& status) {
  scheduler.Abort(id, status, now_);
  SchedulerTestPeer::CheckInvariants(scheduler);
  Collect();
}

void SchedulerDriver::StopAt(RequestId id, int sample, int num_tokens) {
  scheduler.StopAt(id, sample, num_tokens, now_);
  SchedulerTestPeer::CheckInvariants(scheduler);
  Collect();
}

void SchedulerDriver::Collect() {
  scheduler.TakeEvents(events_);
  for (StreamEvent& event : events_) {
    const RequestId id = event.request->id;
    SampleOutput& out = output(id, event.event.sample);
    EXPECT_FALSE(out.ended()) << "request " << id << " goes on after its end";
    EXPECT_EQ(num_requests_ended_[id], 0) << "request " << id;
    if (event.event.token != kNoToken) {
      if (out.tokens.empty()) {
        out.prompt_logprobs = std::move(event.event.prompt_logprobs);
      } else {
        EXPECT_TRUE(event.event.prompt_logprobs.empty());
      }
      out.tokens.push_back(event.event.token);
      out.logprobs.push_back(std::move(event.event.logprobs));
    } else {
      EXPECT_TRUE(event.event.finish.has_value()) << "an event of nothing";
    }
    if (event.event.finish) {
      out.finishes.push_back(*std::move(event.event.finish));
    }
    if (event.request_ended) ++num_requests_ended_[id];
  }
  events_.clear();
}

}  // namespace binarymos
