// The order in which sequences are served.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "absl/container/btree_set.h"
#include "absl/functional/function_ref.h"
#include "scheduler/fair_share.h"
#include "scheduler/sequence.h"

namespace binarymos {

// Whether `a` is served before `b` once both were admitted: priority, then
// admission. A total order that never changes: the last of those that run gives
// up its blocks first, and finds its old place again.
bool RunsBefore(const Sequence& a, const Sequence& b);

// Sequences that wait to run. This class, FairShare and RunsBefore() are all
// that decides on order: the most urgent priority; in it the tenant that had
// least; of its sequences those that ran before, then the one with the longest
// cached prefix, but the one that came first once it was overtaken
// kMaxOvertakes times. Confined to the serving-loop thread; owns no sequences.
class WaitingQueue {
 public:
  // Sequences of one tenant and priority that come later, but may be admitted
  // before the first of them.
  static constexpr int kMaxOvertakes = 8;

  // Tells how many tokens of a sequence are cached, or nothing if it had better
  // not be admitted yet.
  using Probe = absl::FunctionRef<std::optional<int>(Sequence&)>;

  explicit WaitingQueue(FairShare& shares) : shares_(shares) {}

  // REQUIRES for Insert: `seq.place.share` is set.
  void Insert(Sequence& seq);
  // It is admitted, or ends.
  void Erase(Sequence& seq);

  int size() const { return size_; }

  // Who should be admitted next; nullptr: nobody. Tenants of which no sequence
  // passed the probe are not asked again before the next `round`.
  Sequence* Next(int64_t round, Probe probe);

  // `seq` is about to be admitted: counts whom it overtakes.
  void CountOvertake(const Sequence& seq);

 private:
  struct ByArrival {
    bool operator()(const Sequence* a, const Sequence* b) const;
  };
  struct ByAdmission {
    bool operator()(const Sequence* a, const Sequence* b) const {
      return RunsBefore(*a, *b);
    }
  };
  struct TenantQueue {
    absl::btree_set<Sequence*, ByAdmission> preempted;
    absl::btree_set<Sequence*, ByArrival> sequences;
    int64_t skipped_in = -1;  // round

    bool empty() const { return preempted.empty() && sequences.empty(); }
    const Sequence& first() const {
      return preempted.empty() ? **sequences.begin() : **preempted.begin();
    }
  };
  using Band = std::map<std::string, TenantQueue>;  // by tenant; none is empty

  static TenantQueue* LeastServed(Band& band, int64_t round);
  static Sequence* Choose(const TenantQueue& queue, Probe probe);

  FairShare& shares_;
  std::map<int, Band> bands_;  // by priority; none is empty
  int size_ = 0;
};

}  // namespace binarymos
