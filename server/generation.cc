#include "server/generation.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "server/logging.h"

namespace binarymos {
namespace {

using Clock = std::chrono::steady_clock;

// What one turn of a request takes; then others get theirs, and the sink has a
// chance to say that it has enough.
constexpr size_t kMaxEventsPerRun = 64;

double Milliseconds(Duration duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

// For metrics; of a request that did not fail, how its first sample ended.
const char* FinishedReason(const absl::Status& status, FinishReason reason) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return reason == FinishReason::kLength ? "length" : "stop";
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kUnavailable:
      return "abort";
    default:
      return "error";
  }
}

template <typename T>
void TakeEarliest(std::optional<T>& earliest, const std::optional<T>& value) {
  if (value && (!earliest || *value < *earliest)) earliest = value;
}

template <typename T>
void TakeLatest(std::optional<T>& latest, const std::optional<T>& value) {
  if (value && (!latest || *value > *latest)) latest = value;
}

SamplingParams MakeSampling(const GenerationRequest& request,
                            const std::vector<TokenId>& eos_tokens) {
  const GenerationRequest::Sampling& given = request.sampling;
  SamplingParams params;
  params.temperature = given.temperature.value_or(params.temperature);
  params.top_k = given.top_k.value_or(params.top_k);
  params.top_p = given.top_p.value_or(params.top_p);
  params.min_p = given.min_p.value_or(params.min_p);
  params.repetition_penalty =
      given.repetition_penalty.value_or(params.repetition_penalty);
  params.presence_penalty =
      given.presence_penalty.value_or(params.presence_penalty);
  params.frequency_penalty =
      given.frequency_penalty.value_or(params.frequency_penalty);
  params.seed = given.seed.value_or(params.seed);
  params.min_tokens = request.stop.min_tokens.value_or(0);
  params.suppressed_tokens = request.stop.stop_token_ids;
  if (!request.stop.ignore_eos) {
    params.suppressed_tokens.insert(params.suppressed_tokens.end(),
                                    eos_tokens.begin(), eos_tokens.end());
  }
  return params;
}

}  // namespace

const char* RejectionReason(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kResourceExhausted:
      return "queue_full";
    case absl::StatusCode::kUnavailable:
      return "draining";
    case absl::StatusCode::kDeadlineExceeded:
      return "deadline";
    case absl::StatusCode::kCancelled:
      return "abort";
    default:
      return "invalid";
  }
}

Generation::Generation(Context context, RequestId id, GenerationRequest request,
                       CallInfo call, TimeLimits limits,
                       Reservation reservation, GenerationSink* sink)
    : context_(std::move(context)),
      id_(id),
      call_(std::move(call)),
      limits_(limits),
      sink_(sink),
      request_(std::move(request)),
      reservation_(std::move(reservation)) {}

void Generation::Cancel(absl::Status status) {
  MutexLock lock(mutex_);
  if (!cancelled_.ok()) return;
  cancelled_ = status;
  if (submitted_) {
    context_.model->loop().queue().Push(AbortCommand{id_, std::move(status)});
  }
}

void Generation::Run() {
  if (ended_) return;
  GenerationUpdate update;
  if (stream_ == nullptr) {
    error_ = Prepare(update);
    if (!error_.ok()) End(update);
  } else {
    Pump(update);
    if (num_finished_ == static_cast<int>(samples_.size())) End(update);
  }
  if (!update.empty()) sink_->OnUpdate(*this, std::move(update));
}

absl::Status Generation::Prepare(GenerationUpdate& update) {
  absl::StatusOr<std::vector<TokenId>> prompt = PromptTokens();
  if (!prompt.ok()) return prompt.status();
  const absl::StatusOr<int> max_tokens =
      MaxTokens(static_cast<int>(prompt->size()));
  if (!max_tokens.ok()) return max_tokens.status();
  std::shared_ptr<Request> request =
      MakeRequest(*std::move(prompt), *max_tokens);
  Begin(*request, update);
  absl::Status status = Submit(std::move(request));
  if (!status.ok()) update = GenerationUpdate();
  return status;
}

absl::StatusOr<std::vector<TokenId>> Generation::PromptTokens() {
  if (auto* ids = std::get_if<std::vector<TokenId>>(&request_.prompt)) {
    return std::move(*ids);
  }
  {
    // Tokenizing is work: not for somebody who has left.
    MutexLock lock(mutex_);
    if (!cancelled_.ok()) return cancelled_;
  }
  const auto& text = std::get<std::string>(request_.prompt);
  absl::StatusOr<std::vector<TokenId>> tokens =
      context_.model->tokenizer().Encode(text, /*add_bos=*/true);
  if (!tokens.ok()) {
    return absl::Status(tokens.status().code(),
                        absl::StrCat("text: ", tokens.status().message()));
  }
  if (tokens->empty()) {
    return absl::InvalidArgumentError(
        "text is empty, and the model has no BOS token to begin with");
  }
  return tokens;
}

absl::StatusOr<int> Generation::MaxTokens(int num_prompt_tokens) const {
  const int limit = context_.model->max_positions();
  const int left = limit - num_prompt_tokens;
  if (left < 1) {
    return absl::OutOfRangeError(absl::StrCat(
        "prompt has ", num_prompt_tokens, " tokens; the model has room for ",
        limit, ", of which the output needs at least one"));
  }
  const std::optional<int32_t>& wanted = request_.stop.max_tokens;
  if (wanted && *wanted > left) {
    return absl::OutOfRangeError(
        absl::StrCat("stop.max_tokens is ", *wanted, "; after a prompt of ",
                     num_prompt_tokens, " tokens the model has room for ", left,
                     " of its ", limit));
  }
  const int max_tokens =
      wanted.value_or(std::min(context_.default_max_tokens, left));
  if (request_.stop.min_tokens.value_or(0) > max_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("stop.min_tokens is ", *request_.stop.min_tokens,
                     "; it must be at most max_tokens, which is ", max_tokens));
  }
  return max_tokens;
}

std::shared_ptr<Request> Generation::MakeRequest(std::vector<TokenId> prompt,
                                                 int max_tokens) {
  const Engine& engine = context_.model->engine();
  auto request = std::make_shared<Request>();
  request->id = id_;
  request->external_id = call_.request_id;
  request->tenant = call_.tenant;
  request->priority = request_.priority.value_or(0);
  request->prompt = std::move(prompt);
  request->sampling = MakeSampling(request_, engine.eos_tokens());
  request->num_samples = request_.n.value_or(1);
  request->max_tokens = max_tokens;
  if (!request_.stop.ignore_eos) request->eos_tokens = engine.eos_tokens();
  request->stop_tokens = request_.stop.stop_token_ids;
  request->num_logprobs = request_.logprobs.value_or(-1);
  request->num_prompt_logprobs = request_.prompt_logprobs.value_or(-1);
  request->arrival = call_.arrival;
  request->queue_deadline = limits_.queue;
  request->first_token_deadline = limits_.first_token;
  request->deadline = limits_.total;
  return request;
}

void Generation::Begin(const Request& request, GenerationUpdate& update) {
  max_tokens_ = request.max_tokens;
  num_prompt_tokens_ = static_cast<int>(request.prompt.size());
  update.started.emplace();
  update.started->seed = request.sampling.seed;
  update.started->prompt_tokens = num_prompt_tokens_;

  const TextStops stops{request_.stop.stop_strings,
                        request_.stop.include_stop_string,
                        request_.stop.min_tokens.value_or(0)};
  samples_.reserve(request.num_samples);
  for (int i = 0; i < request.num_samples; ++i) {
    Sample& sample =
        samples_.emplace_back(TextStream(context_.model->tokenizer(), stops));
    std::string text;
    sample.text.Prompt(request.prompt, request_.echo, text);
    if (!request_.echo) continue;
    SampleDelta& delta = update.deltas.emplace_back();
    delta.index = i;
    delta.text = std::move(text);
    delta.token_ids = request.prompt;
  }
  num_new_tokens_.resize(samples_.size());
}

absl::Status Generation::Submit(std::shared_ptr<Request> request) {
  auto stream = std::make_shared<TokenStream>(
      [weak = weak_from_this(), executor = context_.executor] {
        if (auto self = weak.lock()) executor->Schedule(std::move(self));
      });
  request->stream = stream;
  // Pushed under the lock, so that no abort can overtake it.
  MutexLock lock(mutex_);
  if (!cancelled_.ok()) return cancelled_;
  submitted_ = true;
  stream_ = std::move(stream);
  context_.model->loop().queue().Push(
      SubmitCommand{std::move(request), std::move(reservation_)});
  return absl::OkStatus();
}

void Generation::Pump(GenerationUpdate& update) {
  const MonotonicTime now = Clock::now();
  if (error_.ok()) {
    // Text for somebody who has left is not made; the end comes sooner.
    MutexLock lock(mutex_);
    error_ = cancelled_;
  }
  std::fill(num_new_tokens_.begin(), num_new_tokens_.end(), 0);
  const bool drain = num_taken_ == events_.size();
  if (drain) {
    events_.clear();
    num_taken_ = 0;
    stream_->Drain(events_);
  }
  const size_t end = std::min(events_.size(), num_taken_ + kMaxEventsPerRun);
  while (num_taken_ < end) Take(events_[num_taken_++], update);
  // Also if the rest of the last time was taken: the stream says only once that
  // it has more, and that was before.
  if (!drain || end < events_.size()) {
    context_.executor->Schedule(shared_from_this());
  }
  RecordInterTokenLatencies(now);
}

void Generation::Take(TokenEvent& event, GenerationUpdate& update) {
  Sample& sample = samples_[event.sample];
  if (error_.ok() && !event.prompt_logprobs.empty() && event.sample == 0) {
    update.prompt_logprobs = std::move(event.prompt_logprobs);
  }
  if (error_.ok() && !sample.ended) {
    const bool ends = event.finish && event.finish->status.ok();
    if (event.token != kNoToken) {
      TakeToken(event, sample, DeltaOf(event.sample, update));
    }
    if (ends && !sample.ended) {
      SampleDelta& delta = DeltaOf(event.sample, update);
      sample.text.Finish(delta.text);
      sample.ended = true;
      sample.reason = event.finish->reason;
      delta.end = SampleEnd{sample.reason, kNoToken, ""};
      if (sample.reason == FinishReason::kStopToken) {
        delta.end->matched_stop_token = event.finish->matched_token;
      }
    }
  }
  if (event.finish) TakeFinish(*std::move(event.finish), sample);
}

void Generation::TakeToken(TokenEvent& event, Sample& sample,
                           SampleDelta& delta) {
  ++num_new_tokens_[event.sample];
  delta.token_ids.push_back(event.token);
  if (request_.logprobs) delta.logprobs.push_back(std::move(event.logprobs));
  const bool hidden =
      event.finish && (event.finish->reason == FinishReason::kEos ||
                       event.finish->reason == FinishReason::kStopToken);
  if (hidden) {
    sample.text.AppendHidden();
    return;
  }
  if (!sample.text.Append(event.token, delta.text)) return;
  sample.ended = true;
  sample.reason = FinishReason::kStopString;
  delta.end = SampleEnd{sample.reason, kNoToken, sample.text.matched_string()};
  if (!event.finish) {
    context_.model->loop().queue().Push(
        StopAtCommand{id_, event.sample, sample.text.num_tokens()});
  }
}

void Generation::TakeFinish(Finish finish, Sample& sample) {
  ++num_finished_;
  // A sample that the client saw end has ended well, whatever came after.
  if (!finish.status.ok() && !sample.ended && error_.ok()) {
    error_ = finish.status;
    if (num_finished_ < static_cast<int>(samples_.size())) Cancel(error_);
  }
  sample.finish = std::move(finish);
}

SampleDelta& Generation::DeltaOf(int index, GenerationUpdate& update) {
  for (SampleDelta& delta : update.deltas) {
    if (delta.index == index) return delta;
  }
  SampleDelta& delta = update.deltas.emplace_back();
  delta.index = index;
  return delta;
}

void Generation::RecordInterTokenLatencies(MonotonicTime now) {
  for (size_t i = 0; i < samples_.size(); ++i) {
    const int num_tokens = num_new_tokens_[i];
    if (num_tokens == 0) continue;
    std::optional<MonotonicTime>& newest = samples_[i].newest_token;
    if (newest && context_.metrics != nullptr) {
      // Tokens that arrive together share the time since the last one.
      const Duration latency = (now - *newest) / num_tokens;
      for (int k = 0; k < num_tokens; ++k) {
        context_.metrics->RecordInterTokenLatency(latency);
      }
    }
    newest = now;
  }
}

void Generation::End(GenerationUpdate& update) {
  ended_ = true;
  reservation_ = Reservation();
  update.ended = Summary();
  Record(*update.ended);
  if (context_.metrics != nullptr) context_.metrics->AddOpenStreams(-1);
  context_.on_end(id_);
}

GenerationEnded Generation::Summary() const {
  GenerationEnded ended;
  ended.status = error_;
  ended.prompt_tokens = num_prompt_tokens_;
  std::optional<MonotonicTime> first_scheduled;
  std::optional<MonotonicTime> first_token;
  std::optional<MonotonicTime> last_token;
  for (const Sample& sample : samples_) {
    ended.completion_tokens += sample.text.num_tokens();
    if (!sample.finish) continue;
    const RequestTimes& times = sample.finish->times;
    TakeEarliest(first_scheduled, times.first_scheduled);
    TakeEarliest(first_token, times.first_token);
    TakeLatest(last_token, times.last_token);
  }
  if (!samples_.empty() && samples_[0].finish) {
    ended.cached_tokens = samples_[0].finish->num_cached_tokens;
  }
  if (first_scheduled) ended.queue = *first_scheduled - call_.arrival;
  if (first_token) {
    ended.ttft = *first_token - call_.arrival;
    ended.decode = *last_token - *first_token;
  }
  ended.total = Clock::now() - call_.arrival;
  return ended;
}

void Generation::Record(const GenerationEnded& ended) const {
  const absl::Status& status = ended.status;
  const bool submitted = stream_ != nullptr;
  const char* const reason = FinishedReason(
      status, samples_.empty() ? FinishReason::kError : samples_[0].reason);
  if (context_.metrics != nullptr && submitted) {
    RequestRecord record;
    record.num_samples = static_cast<int>(samples_.size());
    record.max_tokens = max_tokens_;
    record.num_prompt_tokens = ended.prompt_tokens;
    record.num_cached_tokens = ended.cached_tokens;
    record.num_generated_tokens = ended.completion_tokens;
    record.finished_reason = reason;
    record.status = status;
    record.times = samples_[0].finish->times;
    context_.metrics->RecordRequest(record);
  } else if (context_.metrics != nullptr) {
    context_.metrics->RecordRejection(status, RejectionReason(status));
  }
  Log(status.code() == absl::StatusCode::kInternal ? LogLevel::kError
                                                   : LogLevel::kInfo,
      "request ended",
      {{"request_id", call_.request_id},
       {"model", context_.model->name()},
       {"status", absl::StatusCodeToString(status.code())},
       {"message", std::string(status.message())},
       {"reason", reason},
       {"samples", samples_.size()},
       {"prompt_tokens", ended.prompt_tokens},
       {"cached_tokens", ended.cached_tokens},
       {"output_tokens", ended.completion_tokens},
       {"queue_ms", Milliseconds(ended.queue)},
       {"ttft_ms", Milliseconds(ended.ttft)},
       {"total_ms", Milliseconds(ended.total)}});
}

}  // namespace binarymos
