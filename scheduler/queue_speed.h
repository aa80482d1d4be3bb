// How fast what waits is taken up.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

#include "engine/api/types.h"

namespace binarymos {

// Prompt tokens that leave the queue per second of the time in which some wait,
// the newest kMemory of it counting most. Pure; confined to one thread.
class QueueSpeed {
 public:
  static constexpr Duration kMemory = std::chrono::seconds(10);
  // Less observed time says nothing.
  static constexpr Duration kLeast = std::chrono::milliseconds(20);

  // Until `now`, requests of `num_tokens` prompt tokens left the queue since
  // the last call; some wait now, or none do.
  void Observe(MonotonicTime now, int64_t num_tokens, bool some_wait);

  double tokens_per_second() const;  // 0: not known

 private:
  std::optional<MonotonicTime> waiting_since_;  // the last call
  double seconds_ = 0;
  double tokens_ = 0;
};

}  // namespace binarymos
