// Commands on their way to the serving loop, and the bounds on what waits.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/core/mutex.h"
#include "scheduler/request.h"

namespace binarymos {

class RequestQueue;

// A request that asks for a place.
struct QueueClaim {
  std::string tenant;
  int priority = 0;
  int64_t num_tokens = 0;  // of the prompt, estimated; at least 1
  MonotonicTime now;
  // When it would be of no use any more to begin.
  std::optional<MonotonicTime> start_by;
};

// A place among the requests that wait. Taken before tokenizing, kept until
// the request's first sample starts to run or the request ends. Move-only;
// thread-safe in the sense that it may be destroyed on any thread.
class Reservation {
 public:
  Reservation() = default;
  Reservation(Reservation&& other) noexcept { *this = std::move(other); }
  Reservation& operator=(Reservation&& other) noexcept {
    std::swap(queue_, other.queue_);
    std::swap(claim_, other.claim_);
    return *this;
  }
  ~Reservation();
  Reservation(const Reservation&) = delete;
  Reservation& operator=(const Reservation&) = delete;

  int64_t num_tokens() const { return claim_.num_tokens; }

 private:
  friend class RequestQueue;
  Reservation(RequestQueue* queue, QueueClaim claim)
      : queue_(queue), claim_(std::move(claim)) {}

  RequestQueue* queue_ = nullptr;  // outlives every reservation
  QueueClaim claim_;
};

// 0 means no limit. Tokens are those of prompts, estimated.
struct QueueLimits {
  int max_waiting_requests = 256;
  int64_t max_waiting_tokens = 0;
  int max_waiting_requests_per_tenant = 0;
  int64_t max_waiting_tokens_per_tenant = 0;
  Duration max_estimated_wait{0};
};

// Why there is no place.
struct QueueRefusal {
  enum class Reason {
    kClosed,
    kRequests,
    kTokens,
    kTenantRequests,
    kTenantTokens,
    kEstimatedWait,
    kDeadline,  // it would have to wait longer than it can
  };
  Reason reason = Reason::kClosed;
  Duration retry_after{0};  // when there may be one
};

// The commands.
struct SubmitCommand {
  std::shared_ptr<const Request> request;
  Reservation reservation;
};
// Sample `sample` ends after its first `num_tokens` output tokens, with
// FinishReason::kStopString. Unknown or ended: ignored.
struct StopAtCommand {
  RequestId request = 0;
  int sample = 0;
  int num_tokens = 0;
};
// Ends a request with `status` (CANCELLED by a client, RESOURCE_EXHAUSTED for
// a reader that is too slow, ...). Unknown or ended: ignored.
struct AbortCommand {
  RequestId request = 0;
  absl::Status status;
};
// Ends every request, waiting or running, with `status`.
struct AbortAllCommand {
  absl::Status status;
};
// Forgets cached prefixes that no sequence uses.
struct FlushPrefixCacheCommand {};

using Command = std::variant<SubmitCommand, StopAtCommand, AbortCommand,
                             AbortAllCommand, FlushPrefixCacheCommand>;

// Thread-safe. Any thread puts commands in; the serving loop takes them out.
class RequestQueue {
 public:
  explicit RequestQueue(QueueLimits limits);

  // Takes a place, checked and counted in one step.
  // RESOURCE_EXHAUSTED if a limit would be passed (the message says which),
  // DEADLINE_EXCEEDED if it would probably wait past its `start_by`,
  // UNAVAILABLE after Close. On error `refusal`, if any, says the same to
  // programs.
  absl::StatusOr<Reservation> TryReserve(QueueClaim claim,
                                         QueueRefusal* refusal = nullptr);

  // How long a request of this claim would wait: for what is more urgent, and
  // for as much of every tenant as its own tenant has, since they take turns.
  // 0 as long as nothing is known of the speed.
  Duration EstimatedWait(const QueueClaim& claim) const;

  // Appends a command and wakes the loop. After Close a Submit is dropped and
  // its stream told UNAVAILABLE; other commands reach the requests that go on.
  // After Shutdown every command is dropped.
  void Push(Command command);

  // From now on nothing can be reserved or submitted: the server is draining.
  // Idempotent. What was accepted before goes on.
  void Close();

  // As Close, for good: nobody will take commands any more. Loop only.
  void Shutdown();

  // Moves all commands to the end of `commands`. Loop only.
  void TakeAll(std::vector<Command>& commands);

  // Prompt tokens that leave the queue per second while some wait; 0: not
  // known. Loop only.
  void SetSpeed(double tokens_per_second);

  // Waits for a command, Wake() or `until`. Loop only.
  void WaitForCommands(MonotonicTime until);
  // Ends a wait in progress, or the next one.
  void Wake();

  int num_waiting() const;             // places taken
  int64_t num_waiting_tokens() const;  // of their claims

 private:
  friend class Reservation;
  struct Taken {
    int num_requests = 0;
    int64_t num_tokens = 0;
  };
  struct Refused {
    QueueRefusal refusal;
    absl::Status status;
  };

  std::optional<Refused> Refuse(const QueueClaim& claim) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::optional<Refused> RefuseForTime(const QueueClaim& claim) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Refused Full(QueueRefusal::Reason reason, const std::string& what) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Taken TakenBy(const std::string& tenant) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Duration Wait(const QueueClaim& claim) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Duration TimeFor(int64_t num_tokens) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Release(const QueueClaim& claim);

  const QueueLimits limits_;

  mutable Mutex mutex_;
  CondVar not_empty_;
  std::vector<Command> commands_ ABSL_GUARDED_BY(mutex_);
  Taken taken_ ABSL_GUARDED_BY(mutex_);
  // The same by priority and tenant; no entry is empty.
  std::map<std::pair<int, std::string>, Taken> taken_by_
      ABSL_GUARDED_BY(mutex_);
  double tokens_per_second_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool shut_down_ ABSL_GUARDED_BY(mutex_) = false;
  bool wake_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace binarymos
