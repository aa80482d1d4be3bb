#include "scheduler/queue_speed.h"

#include <chrono>
#include <cmath>

namespace binarymos {
namespace {

double Seconds(Duration duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

void QueueSpeed::Observe(MonotonicTime now, int64_t num_tokens,
                         bool some_wait) {
  if (waiting_since_) {
    const double passed = Seconds(now - *waiting_since_);
    const double kept = std::exp(-passed / Seconds(kMemory));
    seconds_ = seconds_ * kept + passed;
    tokens_ = tokens_ * kept + static_cast<double>(num_tokens);
  }
  waiting_since_.reset();
  if (some_wait) waiting_since_ = now;
}

double QueueSpeed::tokens_per_second() const {
  return seconds_ < Seconds(kLeast) ? 0 : tokens_ / seconds_;
}

}  // namespace binarymos
