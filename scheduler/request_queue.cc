#include "scheduler/request_queue.h"

#include <chrono>
#include <iterator>

#include "absl/strings/str_cat.h"

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
  if (queue_ != nullptr) queue_->Release(num_tokens_);
}

RequestQueue::RequestQueue(QueueLimits limits) : limits_(limits) {}

absl::StatusOr<Reservation> RequestQueue::TryReserve(
    const std::string& /*tenant*/, int64_t num_tokens) {
  MutexLock lock(mutex_);
  if (closed_) return absl::UnavailableError(kClosed);
  if (limits_.max_waiting_requests > 0 &&
      num_reserved_ >= limits_.max_waiting_requests) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the queue is full: ", num_reserved_,
                     " requests wait and max_waiting_requests is ",
                     limits_.max_waiting_requests, "; try again later"));
  }
  if (limits_.max_waiting_tokens > 0 &&
      num_tokens > limits_.max_waiting_tokens - num_reserved_tokens_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the queue is full: requests of ", num_reserved_tokens_,
                     " prompt tokens wait, this one has about ", num_tokens,
                     " and max_waiting_tokens is ", limits_.max_waiting_tokens,
                     "; try again later"));
  }
  ++num_reserved_;
  num_reserved_tokens_ += num_tokens;
  return Reservation(this, num_tokens);
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
  return num_reserved_;
}

void RequestQueue::Release(int64_t num_tokens) {
  MutexLock lock(mutex_);
  --num_reserved_;
  num_reserved_tokens_ -= num_tokens;
}

}  // namespace binarymos
