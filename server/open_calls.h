// Counts calls in progress, for those who wait for the last one.
#pragma once

#include <functional>
#include <utility>

#include "engine/core/mutex.h"

namespace binarymos {

// Thread-safe.
class OpenCalls {
 public:
  // `on_idle` is called whenever the last call has ended, without a lock held.
  explicit OpenCalls(std::function<void()> on_idle)
      : on_idle_(std::move(on_idle)) {}

  void Add() {
    MutexLock lock(mutex_);
    ++count_;
  }

  void Remove() {
    bool idle = false;
    {
      MutexLock lock(mutex_);
      idle = --count_ == 0;
    }
    if (idle) on_idle_();
  }

  int count() const {
    MutexLock lock(mutex_);
    return count_;
  }

 private:
  const std::function<void()> on_idle_;
  mutable Mutex mutex_;
  int count_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace binarymos
