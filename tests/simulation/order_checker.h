// Watches plans and recounts who was served.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "scheduler/scheduler.h"
#include "tests/simulation/scenario.h"

namespace binarymos {

// Reports as test failures:
// - two tenants that both kept waiting and were served more differently than
//   fair sharing allows (without priorities and prefix caching, where that is
//   all that decides);
// - a sequence that came first of its tenant and priority, and was overtaken
//   more often than WaitingQueue::kMaxOvertakes.
class OrderChecker {
 public:
  explicit OrderChecker(const Scenario& scenario);

  // To be called for every plan, before it is computed.
  void Check(const Scheduler& scheduler, const BatchPlan& plan);

  // Sequences that wait for their first admission, by tenant.
  const std::map<std::string, int>& num_waiting() const { return num_waiting_; }
  // Weighted tokens, from the beginning.
  const std::map<std::string, int64_t>& service() const { return service_; }

 private:
  using Sample = std::pair<RequestId, int>;
  struct Oldest {
    Sample sample;
    int num_overtaken = 0;
  };

  void CountRow(const Sequence& seq, const BatchRow& row);
  void CheckFairness();

  const bool only_shares_decide_;
  const int64_t credit_;
  int64_t most_in_flight_ = 0;  // service that running sequences can still get
  std::map<Sample, int> num_computed_;  // positions, as far as ever
  std::map<std::string, int> num_waiting_;
  std::map<std::string, int64_t> service_;
  // Of tenants that have both waited since then, the difference in service.
  std::map<std::pair<std::string, std::string>, int64_t> since_;
  std::map<std::pair<std::string, int>, Oldest> oldest_;
};

}  // namespace binarymos
