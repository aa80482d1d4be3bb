#include "scheduler/serving_loop.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <variant>

#include "engine/core/check.h"

namespace binarymos {
namespace {

// An idle loop wakes as often to show that it lives.
constexpr Duration kIdleBeat = std::chrono::seconds(1);

template <typename... Ts>
struct Overloaded : Ts... {
  using Ts::operator()...;
};
template <typename... Ts>
Overloaded(Ts...) -> Overloaded<Ts...>;

}  // namespace

ServingLoop::ServingLoop(ModelRunner& runner, const SchedulerOptions& options,
                         QueueLimits limits, Clock clock)
    : runner_(runner),
      clock_(std::move(clock)),
      queue_(limits),
      scheduler_(options) {
  BINARYMOS_CHECK(runner.max_steps_in_flight() >= 1 &&
                  runner.max_steps_in_flight() <= Scheduler::kMaxStepsInFlight)
      << runner.max_steps_in_flight();
  runner_.SetProgressCallback([this] { status_.Beat(clock_()); });
  PublishStats();
}

ServingLoop::~ServingLoop() {
  Stop();
  runner_.SetProgressCallback([] {});
}

void ServingLoop::Start() {
  BINARYMOS_CHECK(!thread_.joinable() && !stop_);
  status_.Beat(clock_());
  thread_ = std::thread([this] { Main(); });
}

void ServingLoop::Stop() {
  stop_ = true;
  queue_.Wake();
  if (thread_.joinable()) {
    thread_.join();
  } else {
    Shutdown();
  }
}

void ServingLoop::Main() {
  while (!stop_ && !ended_) {
    const MonotonicTime now = clock_();
    if (!Step(now) && !ended_) queue_.WaitForCommands(WaitLimit(now));
  }
  Shutdown();
}

MonotonicTime ServingLoop::WaitLimit(MonotonicTime now) const {
  return std::min(now + kIdleBeat,
                  scheduler_.next_deadline().value_or(MonotonicTime::max()));
}

bool ServingLoop::Step(MonotonicTime now) {
  if (ended_) return false;
  status_.Beat(now);
  const MonotonicTime started = clock_();
  queue_.TakeAll(commands_);
  for (Command& command : commands_) Execute(command, now);
  commands_.clear();

  const int num_before = scheduler_.num_steps_in_flight();
  absl::Status status = SubmitStep(now);
  const int num_in_flight = scheduler_.num_steps_in_flight();
  // A step stays in flight while the next one is planned, if there is one.
  const bool submitted = num_in_flight > num_before;
  if (status.ok() && num_in_flight > 0 &&
      (!submitted || num_in_flight == runner_.max_steps_in_flight())) {
    status = CommitStep(now + (clock_() - started));
  }
  if (!status.ok()) {
    Fail(status, now + (clock_() - started));
    return false;
  }
  PublishStats();
  return num_in_flight > 0;
}

void ServingLoop::Execute(Command& command, MonotonicTime now) {
  std::visit(Overloaded{[&](SubmitCommand& submit) {
                          // Kept until the request is scheduled or ends, which
                          // it can now.
                          reservations_[submit.request->id] =
                              std::move(submit.reservation);
                          scheduler_.Add(std::move(submit.request), now);
                        },
                        [&](const StopAtCommand& stop) {
                          scheduler_.StopAt(stop.request, stop.sample,
                                            stop.num_tokens, now);
                        },
                        [&](const AbortCommand& abort) {
                          scheduler_.Abort(abort.request, abort.status, now);
                        },
                        [&](const AbortAllCommand& abort) {
                          scheduler_.AbortAll(abort.status, now);
                        },
                        [&](const FlushPrefixCacheCommand&) {
                          scheduler_.FlushPrefixCache();
                        }},
             command);
}

// Of the requests that have begun to run.
void ServingLoop::TakePlacesBack(MonotonicTime now) {
  int64_t num_tokens = 0;
  for (const RequestId id : scheduler_.started_requests()) {
    const auto found = reservations_.find(id);
    num_tokens += found->second.num_tokens();
    reservations_.erase(found);
  }
  const bool some_wait = !reservations_.empty();
  queue_speed_.Observe(now, num_tokens, some_wait);
  if (some_wait) queue_.SetSpeed(queue_speed_.tokens_per_second());
}

absl::Status ServingLoop::SubmitStep(MonotonicTime now) {
  const MonotonicTime started = clock_();
  const BatchPlan& plan = scheduler_.Schedule(now);
  schedule_time_ += clock_() - started;
  TakePlacesBack(now);
  PublishEvents();
  for (const SlotOperation& operation : scheduler_.slot_operations()) {
    if (operation.kind == SlotOperation::Kind::kAdd) {
      runner_.AddSequence(operation.slot, operation.init);
    } else {
      runner_.RemoveSequence(operation.slot);
    }
  }
  return plan.empty() ? absl::OkStatus() : runner_.Submit(plan);
}

absl::Status ServingLoop::CommitStep(MonotonicTime now) {
  const MonotonicTime before_wait = clock_();
  if (absl::Status status = runner_.Wait(result_); !status.ok()) return status;
  const MonotonicTime started = clock_();
  scheduler_.Commit(result_, now + (started - before_wait));
  schedule_time_ += clock_() - started;
  PublishEvents();
  return absl::OkStatus();
}

void ServingLoop::PublishEvents() {
  scheduler_.TakeEvents(events_);
  if (events_.empty()) return;
  PublishStats();  // who sees a request end finds its blocks back
  for (StreamEvent& event : events_) {
    if (event.request_ended) reservations_.erase(event.request->id);
    event.request->stream->Push(std::move(event.event));
  }
  events_.clear();
}

void ServingLoop::PublishStats() {
  stats_ = scheduler_.stats();
  stats_.schedule_time = schedule_time_;
  status_.Publish(stats_);
}

void ServingLoop::Fail(const absl::Status& status, MonotonicTime now) {
  status_.SetFailed(status);
  EndRequests(status, now);
}

void ServingLoop::EndRequests(const absl::Status& status, MonotonicTime now) {
  queue_.Shutdown();
  queue_.TakeAll(commands_);
  for (Command& command : commands_) Execute(command, now);
  commands_.clear();
  scheduler_.AbortAll(status, now);
  PublishEvents();
  PublishStats();
  ended_ = true;
}

void ServingLoop::Shutdown() {
  if (ended_) return;
  EndRequests(absl::UnavailableError("the server has shut down"), clock_());
  // Leave the runner idle: it outlives the loop.
  while (scheduler_.num_steps_in_flight() > 0) {
    if (absl::Status status = CommitStep(clock_()); !status.ok()) {
      status_.SetFailed(std::move(status));
      return;
    }
  }
  if (absl::Status status = SubmitStep(clock_()); !status.ok()) {
    status_.SetFailed(std::move(status));
  }
  PublishStats();
}

}  // namespace binarymos
