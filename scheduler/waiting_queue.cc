#include "scheduler/waiting_queue.h"

#include <tuple>

namespace binarymos {
namespace {

auto Key(const Sequence& seq) {
  const Request& request = seq.request();
  return std::make_tuple(request.priority, request.arrival, request.id,
                         seq.sample());
}

}  // namespace

bool Precedes(const Sequence& a, const Sequence& b) { return Key(a) < Key(b); }

Sequence* WaitingQueue::First() const {
  return sequences_.empty() ? nullptr : *sequences_.begin();
}

Sequence* WaitingQueue::After(Sequence& seq) const {
  const auto next = sequences_.upper_bound(&seq);
  return next == sequences_.end() ? nullptr : *next;
}

}  // namespace binarymos
