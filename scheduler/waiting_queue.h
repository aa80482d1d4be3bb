// The order in which sequences are served.
#pragma once

#include "absl/container/btree_set.h"
#include "scheduler/sequence.h"

namespace binarymos {

// Whether `a` is served before `b`: priority, then arrival. A total order that
// never changes, so a preempted sequence finds its old place again.
bool Precedes(const Sequence& a, const Sequence& b);

// Sequences that wait to run, in the order of admission. This class and
// Precedes() are all that decides on order. Confined to the serving-loop
// thread; owns nothing.
class WaitingQueue {
 public:
  void Insert(Sequence& seq) { sequences_.insert(&seq); }
  void Erase(Sequence& seq) { sequences_.erase(&seq); }

  int size() const { return static_cast<int>(sequences_.size()); }
  Sequence* First() const;               // nullptr: empty
  Sequence* After(Sequence& seq) const;  // nullptr: there is none

 private:
  struct Order {
    bool operator()(const Sequence* a, const Sequence* b) const {
      return Precedes(*a, *b);
    }
  };
  absl::btree_set<Sequence*, Order> sequences_;
};

}  // namespace binarymos
