// What happens in a simulation: who comes, what they want, and what goes wrong.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "scheduler/request.h"
#include "scheduler/request_queue.h"
#include "scheduler/scheduler.h"
#include "tests/simulation/timed_runner.h"

namespace binarymos {

inline constexpr MonotonicTime kBeginning{std::chrono::hours(1)};

// Somebody who sends one request and reads what comes of it.
struct SimulatedClient {
  // Whose arrival is when a place in the queue is asked for.
  std::shared_ptr<Request> request;
  // The request is submitted so long after its arrival.
  Duration tokenizing{0};
  // Reads no more often than this.
  Duration reading_pause{0};
  // Goes away at this time, or with as many tokens of sample 0.
  std::optional<MonotonicTime> leaves_at;
  int leaves_with = -1;
  // By sample: the number of its tokens that contain a stop string; 0: none do.
  std::vector<int> stops_with;
  // Asks for the stop so many tokens before it has them.
  int asks_ahead = 0;
};

struct Scenario {
  SchedulerOptions options;
  QueueLimits limits;
  int max_steps_in_flight = 1;
  StepCost cost;
  std::vector<SimulatedClient> clients;    // by arrival
  std::vector<MonotonicTime> flushes;      // of the prefix cache
  std::optional<MonotonicTime> closes_at;  // the queue, for good
  std::optional<MonotonicTime> aborts_all_at;
  StepId fail_submit_at = -1;
  StepId fail_wait_at = -1;
  int check_interval = 1;  // turns between looks at every block and sequence
  // Whether prompts have a prefix in common, and priorities differ.
  bool shares_prefixes = false;
  bool has_priorities = false;
};

// The scenario of a seed: Poisson or bursty arrivals, log-normal lengths,
// common prefixes, several tenants; clients that leave, find stop strings, read
// slowly or set limits of time; too few blocks; operators that flush, abort or
// drain; now and then a device that fails.
Scenario RandomScenario(uint64_t seed);

}  // namespace binarymos
