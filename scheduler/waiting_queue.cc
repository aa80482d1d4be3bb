#include "scheduler/waiting_queue.h"

#include <tuple>

namespace binarymos {
namespace {

// Of one tenant: how many that could be admitted are compared, and how many are
// looked at to find them.
constexpr int kMaxCompared = 8;
constexpr int kMaxProbed = 64;

bool WasAdmitted(const Sequence& seq) { return seq.place.order >= 0; }

const TenantShare& ShareOf(const Sequence& seq) { return *seq.place.share; }

}  // namespace

bool RunsBefore(const Sequence& a, const Sequence& b) {
  return std::make_tuple(a.request().priority, a.place.order) <
         std::make_tuple(b.request().priority, b.place.order);
}

bool WaitingQueue::ByArrival::operator()(const Sequence* a,
                                         const Sequence* b) const {
  const auto key = [](const Sequence& seq) {
    return std::make_tuple(seq.request().arrival, seq.request().id,
                           seq.sample());
  };
  return key(*a) < key(*b);
}

void WaitingQueue::Insert(Sequence& seq) {
  TenantQueue& queue = bands_[seq.request().priority][seq.request().tenant];
  if (WasAdmitted(seq)) {
    queue.preempted.insert(&seq);
  } else {
    queue.sequences.insert(&seq);
  }
  shares_.BeginWaiting(*seq.place.share);
  ++size_;
}

void WaitingQueue::Erase(Sequence& seq) {
  const auto band = bands_.find(seq.request().priority);
  const auto tenant = band->second.find(seq.request().tenant);
  if (WasAdmitted(seq)) {
    tenant->second.preempted.erase(&seq);
  } else {
    tenant->second.sequences.erase(&seq);
  }
  if (tenant->second.empty()) band->second.erase(tenant);
  if (band->second.empty()) bands_.erase(band);
  shares_.EndWaiting(*seq.place.share);
  --size_;
}

Sequence* WaitingQueue::Next(int64_t round, Probe probe) {
  for (auto& [priority, band] : bands_) {
    while (TenantQueue* queue = LeastServed(band, round)) {
      if (Sequence* seq = Choose(*queue, probe)) return seq;
      queue->skipped_in = round;
    }
  }
  return nullptr;
}

void WaitingQueue::CountOvertake(const Sequence& seq) {
  if (WasAdmitted(seq)) return;
  const TenantQueue& queue =
      bands_.at(seq.request().priority).at(seq.request().tenant);
  Sequence* const first = *queue.sequences.begin();
  if (first != &seq) ++first->place.num_overtaken;
}

WaitingQueue::TenantQueue* WaitingQueue::LeastServed(Band& band,
                                                     int64_t round) {
  TenantQueue* least = nullptr;
  const auto key = [](const TenantQueue& queue) {
    const Sequence& first = queue.first();
    return std::make_tuple(ShareOf(first).service, first.request().arrival,
                           first.request().id);
  };
  for (auto& [tenant, queue] : band) {
    if (queue.skipped_in == round) continue;
    if (least == nullptr || key(queue) < key(*least)) least = &queue;
  }
  return least;
}

Sequence* WaitingQueue::Choose(const TenantQueue& queue, Probe probe) {
  for (Sequence* seq : queue.preempted) {
    if (probe(*seq)) return seq;
  }
  if (queue.sequences.empty()) return nullptr;
  Sequence& first = **queue.sequences.begin();
  if (first.place.num_overtaken >= kMaxOvertakes) {
    return probe(first) ? &first : nullptr;
  }
  Sequence* best = nullptr;
  int longest = -1;
  int num_probed = 0;
  int num_compared = 0;
  for (Sequence* seq : queue.sequences) {
    if (num_probed++ == kMaxProbed || num_compared == kMaxCompared) break;
    const std::optional<int> num_cached = probe(*seq);
    if (!num_cached) continue;
    ++num_compared;
    if (*num_cached <= longest) continue;
    longest = *num_cached;
    best = seq;
  }
  return best;
}

}  // namespace binarymos
