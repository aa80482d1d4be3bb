// The scheduler's own time per step: Schedule and Commit, with a runner that
// costs nothing.
#pragma once

#include <vector>

namespace binarymos {

struct SchedulerBenchRow {
  int num_running = 0;
  int num_waiting = 0;
  int num_steps = 0;
  double median_us = 0;  // of Schedule + Commit + taking the events
  double p99_us = 0;
};

// `num_running` sequences decode while `num_waiting` more stand in the queue,
// for `num_steps` steps. Sequences are long enough that none ends.
SchedulerBenchRow BenchScheduler(int num_running, int num_waiting,
                                 int num_steps);

}  // namespace binarymos
