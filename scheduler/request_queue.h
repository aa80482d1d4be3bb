// Commands on their way to the serving loop, and the bound on what waits.
#pragma once

#include <cstdint>
#include <memory>
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

// A place among the requests that wait. Taken before tokenizing, kept until
// the request's first sample starts to run or the request ends. Move-only;
// thread-safe in the sense that it may be destroyed on any thread.
class Reservation {
 public:
  Reservation() = default;
  Reservation(Reservation&& other) noexcept { *this = std::move(other); }
  Reservation& operator=(Reservation&& other) noexcept {
    std::swap(queue_, other.queue_);
    std::swap(num_tokens_, other.num_tokens_);
    return *this;
  }
  ~Reservation();
  Reservation(const Reservation&) = delete;
  Reservation& operator=(const Reservation&) = delete;

 private:
  friend class RequestQueue;
  Reservation(RequestQueue* queue, int64_t num_tokens)
      : queue_(queue), num_tokens_(num_tokens) {}

  RequestQueue* queue_ = nullptr;  // outlives every reservation
  int64_t num_tokens_ = 0;
};

struct QueueLimits {
  int max_waiting_requests = 256;  // 0: no limit
  int64_t max_waiting_tokens = 0;  // prompt tokens, estimated; 0: no limit
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

  // Takes a place for a request of about `num_tokens` prompt tokens, checked
  // and counted in one step. Limits are common to all tenants.
  // RESOURCE_EXHAUSTED if a limit would be passed (the message says which),
  // UNAVAILABLE after Close.
  absl::StatusOr<Reservation> TryReserve(const std::string& tenant,
                                         int64_t num_tokens);

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

  // Waits for a command, Wake() or `until`. Loop only.
  void WaitForCommands(MonotonicTime until);
  // Ends a wait in progress, or the next one.
  void Wake();

  int num_waiting() const;  // places taken

 private:
  friend class Reservation;
  void Release(int64_t num_tokens);

  const QueueLimits limits_;

  mutable Mutex mutex_;
  CondVar not_empty_;
  std::vector<Command> commands_ ABSL_GUARDED_BY(mutex_);
  int num_reserved_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t num_reserved_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool shut_down_ ABSL_GUARDED_BY(mutex_) = false;
  bool wake_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace binarymos
