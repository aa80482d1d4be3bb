// Looks into the scheduler and recounts everything.
#pragma once

#include <functional>

#include "scheduler/scheduler.h"
#include "scheduler/serving_loop.h"

namespace binarymos {

class SchedulerTestPeer {
 public:
  // Reports a test failure for every invariant that does not hold: reference
  // counts equal owners, the free list holds exactly what nobody owns, what is
  // cached can be found, slots belong to one sequence, a sequence that does not
  // run owns nothing unless a step in flight uses it.
  static void CheckInvariants(const Scheduler& scheduler);

  // As CheckInvariants, and nothing is left: no request, every block and slot
  // free.
  static void CheckIdle(const Scheduler& scheduler);

  static void CheckPool(const BlockPool& pool);
  static const KvCacheManager& kv(const Scheduler& scheduler) {
    return scheduler.kv_;
  }
  static const Scheduler& scheduler(const ServingLoop& loop) {
    return loop.scheduler_;
  }

  // Requests without a sample that was ever scheduled.
  static int NumNotStarted(const Scheduler& scheduler);
  // Calls `visit` for every sequence that has not ended, in any order.
  static void ForEachSequence(
      const Scheduler& scheduler,
      const std::function<void(const Sequence&)>& visit);
};

}  // namespace binarymos
