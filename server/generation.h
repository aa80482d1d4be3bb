// One request on its way through the server, and what its face sees of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/api/batch_plan.h"
#include "engine/api/types.h"
#include "engine/core/mutex.h"
#include "scheduler/request_queue.h"
#include "scheduler/token_stream.h"
#include "server/generation_request.h"
#include "server/metrics.h"
#include "server/model_registry.h"
#include "server/text_executor.h"
#include "server/text_stream.h"

namespace binarymos {

class Generation;

// Moments at which a request ends unless it has begun to run, has a token, or
// has ended.
struct TimeLimits {
  std::optional<MonotonicTime> queue;
  std::optional<MonotonicTime> first_token;
  std::optional<MonotonicTime> total;
};

// Why a request never reached the scheduler, as a label of metrics.
const char* RejectionReason(const absl::Status& status);

// What a face was told about the call itself.
struct CallInfo {
  std::string request_id;  // not empty
  std::string tenant;      // empty: the one of all who do not say
  MonotonicTime arrival;
  std::optional<MonotonicTime> deadline;  // of the RPC
};

// How a sample ended, seen by the client.
struct SampleEnd {
  FinishReason reason = FinishReason::kLength;  // kEos ... kLength
  TokenId matched_stop_token = kNoToken;        // of kStopToken
  std::string matched_stop_string;              // of kStopString
};

// What one sample grew by. The text of EOS and stop tokens is not shown; the
// tokens are.
struct SampleDelta {
  int index = 0;
  std::string text;
  std::vector<TokenId> token_ids;
  std::vector<PositionLogprobs> logprobs;  // if asked for, one per output token
  std::optional<SampleEnd> end;
};

struct GenerationStarted {
  uint64_t seed = 0;
  int prompt_tokens = 0;
};

struct GenerationEnded {
  absl::Status status;
  int prompt_tokens = 0;
  int cached_tokens = 0;
  int completion_tokens = 0;
  Duration queue{0};   // arrival to first scheduled
  Duration ttft{0};    // arrival to first token
  Duration decode{0};  // first token to last
  Duration total{0};   // arrival to end
};

// News of a request. `started` comes in the first update and `ended` in the
// last; a request that ends before it was tokenized has only the latter.
struct GenerationUpdate {
  std::optional<GenerationStarted> started;
  std::vector<SampleDelta> deltas;  // at most one per sample
  std::vector<PositionLogprobs> prompt_logprobs;
  std::optional<GenerationEnded> ended;

  bool empty() const {
    return !started && deltas.empty() && prompt_logprobs.empty() && !ended;
  }
};

// The face's end of a request.
class GenerationSink {
 public:
  virtual ~GenerationSink() = default;

  // Takes news, in order, one call at a time, on a text thread. Must not block.
  // Every request that was started ends: the call with `ended` comes exactly
  // once and is the last. Until then the sink has to live; it may be gone when
  // that call returns.
  virtual void OnUpdate(Generation& generation, GenerationUpdate update) = 0;
};

// Created by GenerationService. Tokenizes and submits the request, and turns
// the tokens that come back into updates, all of it on the text executor.
class Generation : public TextJob,
                   public std::enable_shared_from_this<Generation> {
 public:
  // What a request needs of its surroundings; all of it outlives the request.
  struct Context {
    ServedModel* model = nullptr;
    TextExecutor* executor = nullptr;
    Metrics* metrics = nullptr;  // may be null
    int default_max_tokens = 256;
    // Called once, before the sink hears of the end.
    std::function<void(RequestId)> on_end;
  };

  // REQUIRES: `request` is valid for the model, but for its length.
  Generation(Context context, RequestId id, GenerationRequest request,
             CallInfo call, TimeLimits limits, Reservation reservation,
             GenerationSink* sink);

  // Ends the request with `status`, wherever it is; tokens on their way are
  // dropped. The sink still hears of the end. Any thread; later calls and
  // calls after the end have no effect.
  void Cancel(absl::Status status);

  const std::string& request_id() const { return call_.request_id; }
  const ServedModel& model() const { return *context_.model; }

  void Run() override;

 private:
  // One of the n samples. The reader's end (a stop string, decided here) may
  // come before the loop's.
  struct Sample {
    explicit Sample(TextStream stream) : text(std::move(stream)) {}
    TextStream text;
    bool ended = false;            // the client knows
    std::optional<Finish> finish;  // the loop has ended it
    std::optional<MonotonicTime> newest_token;
    FinishReason reason = FinishReason::kError;
  };

  // Before the request is submitted.
  absl::Status Prepare(GenerationUpdate& update);
  absl::StatusOr<std::vector<TokenId>> PromptTokens();
  absl::StatusOr<int> MaxTokens(int num_prompt_tokens) const;
  std::shared_ptr<Request> MakeRequest(std::vector<TokenId> prompt,
                                       int max_tokens);
  void Begin(const Request& request, GenerationUpdate& update);
  absl::Status Submit(std::shared_ptr<Request> request);

  // Afterwards.
  void Pump(GenerationUpdate& update);
  void Take(TokenEvent& event, GenerationUpdate& update);
  void TakeToken(TokenEvent& event, Sample& sample, SampleDelta& delta);
  void TakeFinish(Finish finish, Sample& sample);
  void RecordInterTokenLatencies(MonotonicTime now);
  SampleDelta& DeltaOf(int index, GenerationUpdate& update);

  void End(GenerationUpdate& update);
  GenerationEnded Summary() const;
  void Record(const GenerationEnded& ended) const;

  const Context context_;
  const RequestId id_;
  const CallInfo call_;
  const TimeLimits limits_;
  GenerationSink* const sink_;

  // Of Run, which does not run concurrently with itself.
  GenerationRequest request_;
  Reservation reservation_;
  std::shared_ptr<TokenStream> stream_;  // null until submitted
  std::vector<Sample> samples_;
  int num_finished_ = 0;
  int max_tokens_ = 0;
  int num_prompt_tokens_ = 0;
  absl::Status error_;  // the first sample's that failed, or our own
  bool ended_ = false;
  std::vector<TokenEvent> events_;   // from the stream, reused
  size_t num_taken_ = 0;             // of events_
  std::vector<int> num_new_tokens_;  // per sample, reused

  Mutex mutex_;
  absl::Status cancelled_ ABSL_GUARDED_BY(mutex_);
  bool submitted_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace binarymos
