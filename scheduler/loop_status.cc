#include "scheduler/loop_status.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace binarymos {
namespace {

constexpr Duration kMinPatience = std::chrono::seconds(30);
constexpr int kStepsOfPatience = 5;

}  // namespace

void LoopStatus::Beat(MonotonicTime now) {
  last_beat_.store(now.time_since_epoch().count(), std::memory_order_relaxed);
}

MonotonicTime LoopStatus::last_beat() const {
  return MonotonicTime(
      MonotonicTime::duration(last_beat_.load(std::memory_order_relaxed)));
}

void LoopStatus::Publish(const SchedulerStats& stats) {
  MutexLock lock(mutex_);
  stats_ = stats;
}

SchedulerStats LoopStatus::stats() const {
  MutexLock lock(mutex_);
  return stats_;
}

void LoopStatus::SetFailed(absl::Status status) {
  MutexLock lock(mutex_);
  if (status_.ok()) status_ = std::move(status);
}

absl::Status LoopStatus::status() const {
  MutexLock lock(mutex_);
  return status_;
}

bool LoopStatus::IsAlive(MonotonicTime now) const {
  const MonotonicTime beat = last_beat();
  if (beat == MonotonicTime()) return false;
  MutexLock lock(mutex_);
  const Duration patience =
      std::max(kMinPatience, kStepsOfPatience * stats_.longest_step);
  return status_.ok() && now - beat <= patience;
}

}  // namespace binarymos
