// What the rest of the process may know about the serving loop at any time.
#pragma once

#include <atomic>

#include "absl/status/status.h"
#include "engine/api/types.h"
#include "engine/core/mutex.h"
#include "scheduler/scheduler_stats.h"

namespace binarymos {

// Thread-safe. The loop (and the runner's progress callback) writes; health,
// GetLoad and metrics read.
class LoopStatus {
 public:
  // Proof of life. Wait-free.
  void Beat(MonotonicTime now);
  MonotonicTime last_beat() const;

  // Published once per step.
  void Publish(const SchedulerStats& stats);
  SchedulerStats stats() const;

  // The runner failed for good; the loop has ended and told every stream.
  void SetFailed(absl::Status status);
  absl::Status status() const;  // OK while the loop can serve

  // Whether the loop is alive at `now`: not failed, and a heartbeat within
  // max(30 s, 5 x the longest step seen). An idle loop beats too; one that was
  // never started does not.
  bool IsAlive(MonotonicTime now) const;

 private:
  std::atomic<MonotonicTime::rep> last_beat_{0};

  mutable Mutex mutex_;
  SchedulerStats stats_ ABSL_GUARDED_BY(mutex_);
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace binarymos
