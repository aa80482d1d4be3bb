// The one thread that schedules and computes.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "engine/api/model_runner.h"
#include "engine/api/types.h"
#include "scheduler/loop_status.h"
#include "scheduler/queue_speed.h"
#include "scheduler/request_queue.h"
#include "scheduler/scheduler.h"

namespace binarymos {

// Step(now): Admit(queue) -> Submit(Schedule(now)) ->
// Publish(Commit(Wait(...))) with as many steps in flight as the runner allows.
// Tests call Step; the server calls Start and Stop.
class ServingLoop {
 public:
  // Tells the time; a simulation has one of its own.
  using Clock = std::function<MonotonicTime()>;

  // The runner outlives the loop and is used by nobody else. `clock` is asked
  // how long things took.
  ServingLoop(ModelRunner& runner, const SchedulerOptions& options,
              QueueLimits limits, Clock clock = std::chrono::steady_clock::now);
  ~ServingLoop();  // Stop()
  ServingLoop(const ServingLoop&) = delete;
  ServingLoop& operator=(const ServingLoop&) = delete;

  RequestQueue& queue() { return queue_; }              // thread-safe
  const LoopStatus& status() const { return status_; }  // thread-safe

  // Starts the thread. REQUIRES: not started.
  void Start();
  // Ends every request that is left with UNAVAILABLE, then ends the thread.
  // Idempotent. Without Start, does the same on the calling thread.
  void Stop();

  // One turn. Returns false if there was nothing to schedule and nothing in
  // flight, or the loop has ended. An error of the runner ends it: every stream
  // is told, and status() fails. REQUIRES: called on the loop's thread, or
  // never started.
  bool Step(MonotonicTime now);

 private:
  friend class SchedulerTestPeer;

  void Main();
  MonotonicTime WaitLimit(MonotonicTime now) const;
  void Execute(Command& command, MonotonicTime now);
  void TakePlacesBack(MonotonicTime now);
  absl::Status SubmitStep(MonotonicTime now);
  absl::Status CommitStep(MonotonicTime now);
  void PublishEvents();
  void PublishStats();
  void Fail(const absl::Status& status, MonotonicTime now);
  void EndRequests(const absl::Status& status, MonotonicTime now);
  void Shutdown();

  ModelRunner& runner_;
  const Clock clock_;
  RequestQueue queue_;
  LoopStatus status_;
  std::atomic<bool> stop_{false};
  std::thread thread_;

  // Confined to the loop's thread.
  Scheduler scheduler_;
  // Places of the requests that have not been scheduled yet.
  absl::flat_hash_map<RequestId, Reservation> reservations_;
  QueueSpeed queue_speed_;
  StepResult result_;
  std::vector<Command> commands_;
  std::vector<StreamEvent> events_;
  SchedulerStats stats_;
  Duration schedule_time_{0};
  bool ended_ = false;
};

}  // namespace binarymos
