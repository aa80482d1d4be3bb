#include "tests/simulation/order_checker.h"

#include <algorithm>
#include <cstdlib>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "tests/scheduler/scheduler_test_peer.h"

namespace binarymos {
namespace {

using State = SequencePlace::State;

auto Arrival(const Sequence& seq) {
  return std::make_tuple(seq.request().arrival, seq.request().id, seq.sample());
}

}  // namespace

OrderChecker::OrderChecker(const Scenario& scenario)
    : only_shares_decide_(!scenario.has_priorities &&
                          !scenario.options.prefix_caching),
      credit_(scenario.options.cache.max_num_batched_tokens) {
  for (const SimulatedClient& client : scenario.clients) {
    const Request& request = *client.request;
    most_in_flight_ = std::max<int64_t>(
        most_in_flight_,
        FairShare::kPromptTokenCost * std::ssize(request.prompt) +
            FairShare::kOutputTokenCost * request.max_tokens);
  }
  most_in_flight_ *= scenario.options.cache.max_num_seqs;
}

void OrderChecker::Check(const Scheduler& scheduler, const BatchPlan& plan) {
  std::map<SlotId, const BatchRow*> rows;
  for (const BatchRow& row : plan.rows) rows[row.slot] = &row;

  num_waiting_.clear();
  std::map<std::pair<std::string, int>, const Sequence*> oldest;
  std::vector<const Sequence*> admitted;
  SchedulerTestPeer::ForEachSequence(scheduler, [&](const Sequence& seq) {
    const std::string& tenant = seq.request().tenant;
    const auto queue = std::make_pair(tenant, seq.request().priority);
    const bool known = num_computed_.contains({seq.request().id, seq.sample()});
    if (seq.place.state == State::kRunning && rows.contains(seq.place.slot)) {
      if (!known) admitted.push_back(&seq);
      CountRow(seq, *rows[seq.place.slot]);
    } else if (seq.place.state == State::kWaiting && !known) {
      ++num_waiting_[tenant];
      const Sequence*& first = oldest[queue];
      if (first == nullptr || Arrival(seq) < Arrival(*first)) first = &seq;
    }
  });
  if (only_shares_decide_) CheckFairness();

  std::erase_if(oldest_, [&](const auto& entry) {
    return !oldest.contains(entry.first);
  });
  for (const auto& [queue, first] : oldest) {
    const Sample sample{first->request().id, first->sample()};
    Oldest& before = oldest_[queue];
    int num_later = 0;
    bool was_first = before.sample == sample;
    for (const Sequence* seq : admitted) {
      if (seq->request().tenant != queue.first ||
          seq->request().priority != queue.second) {
        continue;
      }
      // Whoever stood before it may be the one that was overtaken.
      if (Arrival(*seq) < Arrival(*first)) was_first = false;
      ++num_later;
    }
    if (before.sample != sample) before = {sample, 0};
    if (!was_first) continue;
    before.num_overtaken += num_later;
    EXPECT_LE(before.num_overtaken, WaitingQueue::kMaxOvertakes)
        << "request " << sample.first << " waits and waits";
  }
}

void OrderChecker::CountRow(const Sequence& seq, const BatchRow& row) {
  const auto [entry, is_new] = num_computed_.try_emplace(
      {seq.request().id, seq.sample()}, row.first_position);
  int& computed = entry->second;
  const int end = row.first_position + row.num_tokens();
  int64_t& service = service_[seq.request().tenant];
  for (int i = std::max(row.first_position, computed); i < end; ++i) {
    if (i < seq.num_prompt_tokens()) service += FairShare::kPromptTokenCost;
  }
  if (row.sample) service += FairShare::kOutputTokenCost;
  computed = std::max(computed, end);
}

void OrderChecker::CheckFairness() {
  std::erase_if(since_, [&](const auto& entry) {
    return !num_waiting_.contains(entry.first.first) ||
           !num_waiting_.contains(entry.first.second);
  });
  const auto end = num_waiting_.end();
  for (auto a = num_waiting_.begin(); a != end; ++a) {
    for (auto b = std::next(a); b != end; ++b) {
      const int64_t difference = service_[a->first] - service_[b->first];
      const auto [since, is_new] =
          since_.try_emplace({a->first, b->first}, difference);
      EXPECT_LE(std::abs(difference - since->second),
                credit_ + 2 * most_in_flight_)
          << "tenants '" << a->first << "' and '" << b->first << "'";
    }
  }
}

}  // namespace binarymos
