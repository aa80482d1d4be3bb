#include "server/generate_reactor.h"

#include <grpcpp/server_context.h>

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/core/mutex.h"
#include "server/generate_messages.h"
#include "server/generation.h"
#include "server/grpc_status.h"

namespace binarymos {
namespace {

using Clock = std::chrono::steady_clock;

constexpr char kRequestIdKey[] = "x-request-id";
constexpr char kTenantKey[] = "x-tenant-id";

// gRPC's deadlines are wall-clock times, ours are not.
std::optional<MonotonicTime> DeadlineOf(const grpc::CallbackServerContext& rpc,
                                        MonotonicTime now) {
  using SystemClock = std::chrono::system_clock;
  const SystemClock::time_point deadline = rpc.deadline();
  if (deadline == SystemClock::time_point::max()) return std::nullopt;
  const auto left = deadline - SystemClock::now();
  if (left > std::chrono::hours(24 * 365)) return std::nullopt;
  return now + left;
}

// Overwrites `name` with what the client's metadata has under `key`, if it has
// anything. An unusable one gives INVALID_ARGUMENT, and leaves `name` as it is.
absl::Status TakeName(const grpc::CallbackServerContext& rpc, const char* key,
                      std::string& name) {
  const auto found = rpc.client_metadata().find(key);
  if (found == rpc.client_metadata().end()) return absl::OkStatus();
  std::string given(found->second.data(), found->second.size());
  absl::Status status = ValidateName(key, given);
  if (status.ok()) name = std::move(given);
  return status;
}

// Null, and the reason in `status`, if the request was refused. A refusal
// consists of trailers alone, so that clients may retry it by themselves.
std::shared_ptr<Generation> StartGeneration(GenerationService& service,
                                            grpc::CallbackServerContext& rpc,
                                            const v1::GenerateRequest& request,
                                            GenerationSink* sink,
                                            absl::Status& status) {
  CallInfo call;
  call.arrival = Clock::now();
  call.deadline = DeadlineOf(rpc, call.arrival);
  call.request_id = service.NewRequestId();
  status = TakeName(rpc, kRequestIdKey, call.request_id);
  if (status.ok()) status = TakeName(rpc, kTenantKey, call.tenant);
  const std::string name = call.request_id;
  std::shared_ptr<Generation> generation;
  if (status.ok()) {
    auto started = service.Start(FromProto(request), std::move(call), sink);
    status = started.status();
    if (started.ok()) generation = *std::move(started);
  }
  if (generation != nullptr) {
    rpc.AddInitialMetadata(kRequestIdKey, name);
  } else {
    rpc.AddTrailingMetadata(kRequestIdKey, name);
  }
  return generation;
}

AnswerContext AnswerContextOf(const Generation& generation) {
  return {generation.request_id(), generation.model().name(),
          generation.model().tokenizer()};
}

// gRPC cancels a call for its client and for its deadline alike.
absl::Status CancelStatus(std::chrono::system_clock::time_point deadline) {
  if (std::chrono::system_clock::now() >= deadline) {
    return absl::DeadlineExceededError("the call's deadline has passed");
  }
  return absl::CancelledError("the client cancelled the call");
}

class GenerateReactor final : public grpc::ServerUnaryReactor,
                              public GenerationSink {
 public:
  GenerateReactor(const CallContext& context, grpc::CallbackServerContext* rpc,
                  const v1::GenerateRequest& request,
                  v1::GenerateResponse* response)
      : context_(context), deadline_(rpc->deadline()), response_(response) {
    context_.open_calls->Add();
    absl::Status status;
    generation_ =
        StartGeneration(*context_.service, *rpc, request, this, status);
    if (generation_ == nullptr) {
      Finish(ToGrpcStatus(status));
    } else {
      StartSendInitialMetadata();
    }
  }

  void OnUpdate(Generation& generation, GenerationUpdate update) override {
    const std::optional<absl::Status> status =
        update.ended ? std::make_optional(update.ended->status) : std::nullopt;
    MergeInto(AnswerContextOf(generation), std::move(update), *response_);
    if (status) Finish(ToGrpcStatus(*status));
  }

  void OnCancel() override {
    if (generation_ != nullptr) generation_->Cancel(CancelStatus(deadline_));
  }

  void OnDone() override {
    OpenCalls* const open_calls = context_.open_calls;
    delete this;
    open_calls->Remove();
  }

 private:
  const CallContext context_;
  const std::chrono::system_clock::time_point deadline_;
  v1::GenerateResponse* const response_;
  std::shared_ptr<Generation> generation_;  // constant once constructed
};

// Invariants: at most one write is in flight, and Finish is called once, by
// whoever finds that the request has ended and no write is in flight. Calls of
// gRPC that may end this object's life happen outside the lock.
class GenerateStreamReactor final
    : public grpc::ServerWriteReactor<v1::GenerateStreamResponse>,
      public GenerationSink {
 public:
  GenerateStreamReactor(const CallContext& context,
                        grpc::CallbackServerContext* rpc,
                        const v1::GenerateRequest& request)
      : context_(context), deadline_(rpc->deadline()) {
    context_.open_calls->Add();
    absl::Status status;
    generation_ =
        StartGeneration(*context_.service, *rpc, request, this, status);
    if (generation_ == nullptr) {
      Finish(ToGrpcStatus(status));
    } else {
      StartSendInitialMetadata();
    }
  }

  void OnUpdate(Generation& generation, GenerationUpdate update) override {
    bool too_slow = false;
    Next next = Next::kNothing;
    {
      MutexLock lock(mutex_);
      if (update.ended) final_status_ = update.ended->status;
      // A failure is told by the status alone.
      const bool failed = final_status_ && !final_status_->ok();
      if (failed) update.ended.reset();
      if (!final_status_ && status_of_reader_.ok()) {
        absl::Status slowness = Slowness();
        too_slow = !slowness.ok();
        if (too_slow) StopWriting(std::move(slowness));
      }
      if (status_of_reader_.ok() && !update.empty()) {
        pending_bytes_ += OutputBytes(update);
        has_pending_ = true;
        MergeInto(AnswerContextOf(generation), std::move(update), pending_);
      }
      if (too_slow) generation.Cancel(status_of_reader_);
      next = Advance();
    }
    // With nothing to do: the write in flight may have ended since, and this
    // object with it.
    if (next != Next::kNothing) Do(next);
  }

  void OnWriteDone(bool ok) override {
    Next next = Next::kNothing;
    {
      MutexLock lock(mutex_);
      writing_ = false;
      if (!ok && status_of_reader_.ok()) {
        StopWriting(absl::CancelledError("the client has gone"));
        generation_->Cancel(status_of_reader_);
      }
      next = Advance();
    }
    if (next != Next::kNothing) Do(next);
  }

  void OnCancel() override {
    if (generation_ != nullptr) generation_->Cancel(CancelStatus(deadline_));
  }

  void OnDone() override {
    OpenCalls* const open_calls = context_.open_calls;
    delete this;
    open_calls->Remove();
  }

 private:
  enum class Next { kNothing, kFinish, kWriteAndFinish };

  // Not OK if output waits, and the reader has not even taken what was sent
  // before it: too much output, or for too long.
  absl::Status Slowness() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!writing_) return absl::OkStatus();
    if (pending_bytes_ > context_.stream_buffer_bytes) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the stream is read too slowly: more than ",
                       context_.stream_buffer_bytes, " bytes of output wait"));
    }
    const Duration limit = context_.write_stall_timeout;
    if (limit > Duration(0) && Clock::now() - write_began_ > limit) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "the stream is not read: one write has waited for more than ",
          std::chrono::duration<double>(limit).count(), " s"));
    }
    return absl::OkStatus();
  }

  void StopWriting(absl::Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    status_of_reader_ = std::move(status);
    v1::GenerateStreamResponse().Swap(&pending_);  // gives the memory back
    has_pending_ = false;
  }

  // Starts the write that is due, if any, and says what is to be done outside
  // the lock.
  Next Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (writing_ || finished_) return Next::kNothing;
    const bool write = has_pending_;
    if (write) {
      message_.Clear();
      message_.Swap(&pending_);
      has_pending_ = false;
      pending_bytes_ = 0;
    }
    if (final_status_) {
      finished_ = true;
      return write ? Next::kWriteAndFinish : Next::kFinish;
    }
    if (write) {
      writing_ = true;
      write_began_ = Clock::now();
      StartWrite(&message_);
    }
    return Next::kNothing;
  }

  // REQUIRES: not kNothing. Afterwards this object may be gone.
  void Do(Next next) {
    absl::Status status;
    {
      MutexLock lock(mutex_);
      status = status_of_reader_.ok() ? *final_status_ : status_of_reader_;
    }
    if (next == Next::kFinish) {
      Finish(ToGrpcStatus(status));
    } else {
      StartWriteAndFinish(&message_, grpc::WriteOptions(),
                          ToGrpcStatus(status));
    }
  }

  const CallContext context_;
  const std::chrono::system_clock::time_point deadline_;
  std::shared_ptr<Generation> generation_;  // constant once constructed

  Mutex mutex_;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  MonotonicTime write_began_ ABSL_GUARDED_BY(mutex_);
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  bool has_pending_ ABSL_GUARDED_BY(mutex_) = false;
  size_t pending_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  v1::GenerateStreamResponse pending_ ABSL_GUARDED_BY(mutex_);
  // Not OK once nothing more is written: the reader is too slow, or gone.
  absl::Status status_of_reader_ ABSL_GUARDED_BY(mutex_);
  std::optional<absl::Status> final_status_ ABSL_GUARDED_BY(mutex_);
  // The write in flight; belongs to gRPC while there is one.
  v1::GenerateStreamResponse message_;
};

}  // namespace

grpc::ServerUnaryReactor* StartGenerate(const CallContext& context,
                                        grpc::CallbackServerContext* rpc,
                                        const v1::GenerateRequest& request,
                                        v1::GenerateResponse* response) {
  return new GenerateReactor(context, rpc, request, response);
}

grpc::ServerWriteReactor<v1::GenerateStreamResponse>* StartGenerateStream(
    const CallContext& context, grpc::CallbackServerContext* rpc,
    const v1::GenerateRequest& request) {
  return new GenerateStreamReactor(context, rpc, request);
}

}  // namespace binarymos
