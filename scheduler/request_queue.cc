#include "scheduler/request_queue.h"

#include <algorithm>
#include <chrono>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "engine/core/check.h"

namespace binarymos {
namespace {

constexpr char kClosed[] =
    "the server takes no new requests, it is shutting down; send it to another "
    "one";

// The loop will never see `request`, so its stream ends here.
void EndStream(const Request& request) {
  for (int sample = 0; sample < request.num_samples; ++sample) {
    TokenEvent event;
    event.sample = sample;
    Finish& finish = event.finish.emplace();
    finish.reason = FinishReason::kError;
    finish.status = absl::UnavailableError(kClosed);
    finish.num_prompt_tokens = static_cast<int>(request.prompt.size());
    finish.times.arrival = request.arrival;
    finish.times.finished = std::chrono::steady_clock::now();
    request.stream->Push(std::move(event));
  }
}

}  // namespace

Reservation::~Reservation() {
  if (queue_ != nullptr) queue_->Release(claim_);
}

RequestQueue::RequestQueue(QueueLimits limits) : limits_(limits) {}

absl::StatusOr<Reservation> RequestQueue::TryReserve(QueueClaim claim,
                                                     QueueRefusal* refusal) {
  BINARYMOS_CHECK_GE(claim.num_tokens, 1);
  MutexLock lock(mutex_);
  if (std::optional<Refused> refused = Refuse(claim)) {
    if (refusal != nullptr) *refusal = refused->refusal;
    return std::move(refused->status);
  }
  Taken& taken = taken_by_[{claim.priority, claim.tenant}];
  for (Taken* each : {&taken_, &taken}) {
    ++each->num_requests;
    each->num_tokens += claim.num_tokens;
  }
  return Reservation(this, std::move(claim));
}

std::optional<RequestQueue::Refused> RequestQueue::Refuse(
    const QueueClaim& claim) const {
  using Reason = QueueRefusal::Reason;
  if (closed_) {
    return Refused{{Reason::kClosed, Duration(0)},
                   absl::UnavailableError(kClosed)};
  }
  const auto too_many_requests = [](const Taken& taken, int limit) {
    return limit > 0 && taken.num_requests >= limit;
  };
  const auto too_many_tokens = [&](const Taken& taken, int64_t limit) {
    return limit > 0 && claim.num_tokens > limit - taken.num_tokens;
  };
  const Taken tenant = TakenBy(claim.tenant);
  if (too_many_requests(taken_, limits_.max_waiting_requests)) {
    return Full(Reason::kRequests,
                absl::StrCat(taken_.num_requests,
                             " requests wait and max_waiting_requests is ",
                             limits_.max_waiting_requests));
  }
  if (too_many_tokens(taken_, limits_.max_waiting_tokens)) {
    return Full(Reason::kTokens,
                absl::StrCat("requests of ", taken_.num_tokens,
                             " prompt tokens wait, this one has about ",
                             claim.num_tokens, " and max_waiting_tokens is ",
                             limits_.max_waiting_tokens));
  }
  if (too_many_requests(tenant, limits_.max_waiting_requests_per_tenant)) {
    return Full(Reason::kTenantRequests,
                absl::StrCat(tenant.num_requests,
                             " requests of this tenant wait and "
                             "max_waiting_requests_per_tenant is ",
                             limits_.max_waiting_requests_per_tenant));
  }
  if (too_many_tokens(tenant, limits_.max_waiting_tokens_per_tenant)) {
    return Full(
        Reason::kTenantTokens,
        absl::StrCat("requests of this tenant of ", tenant.num_tokens,
                     " prompt tokens wait, this one has about ",
                     claim.num_tokens, " and max_waiting_tokens_per_tenant is ",
                     limits_.max_waiting_tokens_per_tenant));
  }
  return RefuseForTime(claim);
}

std::optional<RequestQueue::Refused> RequestQueue::RefuseForTime(
    const QueueClaim& claim) const {
  using Reason = QueueRefusal::Reason;
  const Duration wait = Wait(claim);
  const auto seconds = [](Duration duration) {
    return std::chrono::duration<double>(duration).count();
  };
  if (claim.start_by && claim.now + wait > *claim.start_by) {
    return Refused{{Reason::kDeadline, Duration(0)},
                   absl::DeadlineExceededError(absl::StrCat(
                       "the request would wait about ", seconds(wait),
                       " s, which is longer than its limits of time allow"))};
  }
  if (limits_.max_estimated_wait > Duration(0) &&
      wait > limits_.max_estimated_wait) {
    Refused refused =
        Full(Reason::kEstimatedWait,
             absl::StrCat("the request would wait about ", seconds(wait),
                          " s and max_estimated_wait is ",
                          seconds(limits_.max_estimated_wait), " s"));
    refused.refusal.retry_after = wait - limits_.max_estimated_wait;
    return refused;
  }
  return std::nullopt;
}

// A place is free again when about one request has left.
RequestQueue::Refused RequestQueue::Full(QueueRefusal::Reason reason,
                                         const std::string& what) const {
  return {
      {reason, TimeFor(taken_.num_tokens / std::max(taken_.num_requests, 1))},
      absl::ResourceExhaustedError(
          absl::StrCat("the queue is full: ", what, "; try again later"))};
}

RequestQueue::Taken RequestQueue::TakenBy(const std::string& tenant) const {
  Taken sum;
  for (const auto& [key, taken] : taken_by_) {
    if (key.second != tenant) continue;
    sum.num_requests += taken.num_requests;
    sum.num_tokens += taken.num_tokens;
  }
  return sum;
}

Duration RequestQueue::EstimatedWait(const QueueClaim& claim) const {
  MutexLock lock(mutex_);
  return Wait(claim);
}

Duration RequestQueue::Wait(const QueueClaim& claim) const {
  const auto mine = taken_by_.find({claim.priority, claim.tenant});
  const int64_t own = mine == taken_by_.end() ? 0 : mine->second.num_tokens;
  int64_t ahead = 0;
  for (const auto& [key, taken] : taken_by_) {
    if (key.first > claim.priority) break;
    ahead += key.first < claim.priority
                 ? taken.num_tokens
                 : std::min(taken.num_tokens, own + claim.num_tokens);
  }
  return TimeFor(ahead);
}

Duration RequestQueue::TimeFor(int64_t num_tokens) const {
  constexpr double kLongest = 3600 * 24;
  if (tokens_per_second_ <= 0) return Duration(0);
  return std::chrono::duration_cast<Duration>(
      std::chrono::duration<double>(std::min(
          static_cast<double>(num_tokens) / tokens_per_second_, kLongest)));
}

void RequestQueue::SetSpeed(double tokens_per_second) {
  MutexLock lock(mutex_);
  tokens_per_second_ = tokens_per_second;
}

void RequestQueue::Push(Command command) {
  const auto* submit = std::get_if<SubmitCommand>(&command);
  bool accepted = false;
  {
    MutexLock lock(mutex_);
    accepted = !shut_down_ && (submit == nullptr || !closed_);
    if (accepted) commands_.push_back(std::move(command));
  }
  if (accepted) {
    not_empty_.NotifyOne();
  } else if (submit != nullptr) {
    EndStream(*submit->request);
  }
}

void RequestQueue::Close() {
  MutexLock lock(mutex_);
  closed_ = true;
}

void RequestQueue::Shutdown() {
  MutexLock lock(mutex_);
  closed_ = true;
  shut_down_ = true;
}

void RequestQueue::TakeAll(std::vector<Command>& commands) {
  MutexLock lock(mutex_);
  if (commands.empty()) {
    commands.swap(commands_);
    return;
  }
  commands.insert(commands.end(), std::make_move_iterator(commands_.begin()),
                  std::make_move_iterator(commands_.end()));
  commands_.clear();
}

void RequestQueue::WaitForCommands(MonotonicTime until) {
  MutexLock lock(mutex_);
  while (commands_.empty() && !wake_) {
    if (!not_empty_.WaitUntil(mutex_, until)) break;
  }
  wake_ = false;
}

void RequestQueue::Wake() {
  {
    MutexLock lock(mutex_);
    wake_ = true;
  }
  not_empty_.NotifyOne();
}

int RequestQueue::num_waiting() const {
  MutexLock lock(mutex_);
  return taken_.num_requests;
}

int64_t RequestQueue::num_waiting_tokens() const {
  MutexLock lock(mutex_);
  return taken_.num_tokens;
}

void RequestQueue::Release(const QueueClaim& claim) {
  MutexLock lock(mutex_);
  const auto mine = taken_by_.find({claim.priority, claim.tenant});
  for (Taken* each : {&taken_, &mine->second}) {
    --each->num_requests;
    each->num_tokens -= claim.num_tokens;
  }
  if (mine->second.num_requests == 0) taken_by_.erase(mine);
}

}  // namespace binarymos
