#include "server/generate_messages.h"

#include <chrono>
#include <optional>
#include <utility>

namespace binarymos {
namespace {

double Seconds(Duration duration) {
  return std::chrono::duration<double>(duration).count();
}

void FromProto(const v1::SamplingParams& from,
               GenerationRequest::Sampling& to) {
  if (from.has_temperature()) to.temperature = from.temperature();
  if (from.has_top_k()) to.top_k = from.top_k();
  if (from.has_top_p()) to.top_p = from.top_p();
  if (from.has_min_p()) to.min_p = from.min_p();
  if (from.has_repetition_penalty()) {
    to.repetition_penalty = from.repetition_penalty();
  }
  if (from.has_presence_penalty()) {
    to.presence_penalty = from.presence_penalty();
  }
  if (from.has_frequency_penalty()) {
    to.frequency_penalty = from.frequency_penalty();
  }
  if (from.has_seed()) to.seed = from.seed();
}

void FromProto(const v1::StopConditions& from, GenerationRequest::Stop& to) {
  if (from.has_max_tokens()) to.max_tokens = from.max_tokens();
  if (from.has_min_tokens()) to.min_tokens = from.min_tokens();
  to.stop_strings = {from.stop_strings().begin(), from.stop_strings().end()};
  to.stop_token_ids = {from.stop_token_ids().begin(),
                       from.stop_token_ids().end()};
  to.include_stop_string = from.include_stop_string();
  to.ignore_eos = from.ignore_eos();
}

v1::FinishReason ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kEos:
      return v1::FINISH_REASON_EOS;
    case FinishReason::kStopToken:
      return v1::FINISH_REASON_STOP_TOKEN;
    case FinishReason::kStopString:
      return v1::FINISH_REASON_STOP_STRING;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    default:  // an error, which is a status and not a reason
      return v1::FINISH_REASON_UNSPECIFIED;
  }
}

void ToProto(const TokenLogprob& from, const Tokenizer& tokenizer,
             v1::TokenLogprob& to) {
  to.set_token(from.token);
  to.set_logprob(from.logprob);
  to.set_piece(tokenizer.Piece(from.token, /*keep_special=*/true));
}

void ToProto(const PositionLogprobs& from, const Tokenizer& tokenizer,
             v1::PositionLogprobs& to) {
  ToProto(from.chosen, tokenizer, *to.mutable_chosen());
  for (const TokenLogprob& top : from.top) {
    ToProto(top, tokenizer, *to.add_top());
  }
}

void AddLogprobs(const std::vector<PositionLogprobs>& from,
                 const Tokenizer& tokenizer,
                 google::protobuf::RepeatedPtrField<v1::PositionLogprobs>& to) {
  for (const PositionLogprobs& position : from) {
    ToProto(position, tokenizer, *to.Add());
  }
}

// `Message` is v1::Delta or v1::Completion, whose fields have the same names.
template <typename Message>
void MergeDelta(SampleDelta& from, const Tokenizer& tokenizer, Message& to) {
  if (to.text().empty()) {
    to.set_text(std::move(from.text));
  } else {
    to.mutable_text()->append(from.text);
  }
  to.mutable_token_ids()->Add(from.token_ids.begin(), from.token_ids.end());
  AddLogprobs(from.logprobs, tokenizer, *to.mutable_logprobs());
  if (!from.end) return;
  to.set_finish_reason(ToProto(from.end->reason));
  if (from.end->reason == FinishReason::kStopToken) {
    to.set_matched_stop_token(from.end->matched_stop_token);
  }
  if (from.end->reason == FinishReason::kStopString) {
    to.set_matched_stop_string(from.end->matched_stop_string);
  }
}

v1::Delta& DeltaOf(int index, v1::GenerateStreamResponse& message) {
  for (v1::Delta& delta : *message.mutable_deltas()) {
    if (delta.index() == index) return delta;
  }
  v1::Delta& delta = *message.add_deltas();
  delta.set_index(index);
  return delta;
}

v1::Completion& CompletionOf(int index, v1::GenerateResponse& message) {
  while (message.completions_size() <= index) {
    const int next = message.completions_size();
    message.add_completions()->set_index(next);
  }
  return *message.mutable_completions(index);
}

// `Message` is v1::GenerateStreamResponse::Ended or v1::GenerateResponse.
template <typename Message>
void SetSummary(const GenerationEnded& from, Message& to) {
  v1::Usage& usage = *to.mutable_usage();
  usage.set_prompt_tokens(from.prompt_tokens);
  usage.set_cached_tokens(from.cached_tokens);
  usage.set_completion_tokens(from.completion_tokens);
  v1::Timing& timing = *to.mutable_timing();
  timing.set_queue_seconds(Seconds(from.queue));
  timing.set_ttft_seconds(Seconds(from.ttft));
  timing.set_decode_seconds(Seconds(from.decode));
  timing.set_total_seconds(Seconds(from.total));
}

// `Message` is v1::GenerateStreamResponse::Started or v1::GenerateResponse.
template <typename Message>
void SetStart(const AnswerContext& context, const GenerationStarted& from,
              Message& to) {
  to.set_request_id(context.request_id);
  to.set_model(context.model);
  to.set_seed(from.seed);
}

}  // namespace

GenerationRequest FromProto(const v1::GenerateRequest& from) {
  GenerationRequest to;
  to.model = from.model();
  if (from.has_text()) to.prompt = from.text();
  if (from.has_tokens()) {
    to.prompt = std::vector<TokenId>(from.tokens().ids().begin(),
                                     from.tokens().ids().end());
  }
  FromProto(from.sampling(), to.sampling);
  FromProto(from.stop(), to.stop);
  if (from.has_n()) to.n = from.n();
  if (from.has_logprobs()) to.logprobs = from.logprobs();
  if (from.has_prompt_logprobs()) to.prompt_logprobs = from.prompt_logprobs();
  to.echo = from.echo();
  if (from.has_priority()) to.priority = from.priority();
  if (from.has_time_limit_ms()) to.time_limit_ms = from.time_limit_ms();
  if (from.has_queue_time_limit_ms()) {
    to.queue_time_limit_ms = from.queue_time_limit_ms();
  }
  if (from.has_first_token_time_limit_ms()) {
    to.first_token_time_limit_ms = from.first_token_time_limit_ms();
  }
  return to;
}

void MergeInto(const AnswerContext& context, GenerationUpdate update,
               v1::GenerateStreamResponse& message) {
  if (update.started) {
    SetStart(context, *update.started, *message.mutable_started());
    message.mutable_started()->set_prompt_tokens(update.started->prompt_tokens);
  }
  for (SampleDelta& delta : update.deltas) {
    MergeDelta(delta, context.tokenizer, DeltaOf(delta.index, message));
  }
  AddLogprobs(update.prompt_logprobs, context.tokenizer,
              *message.mutable_prompt_logprobs());
  if (update.ended && update.ended->status.ok()) {
    SetSummary(*update.ended, *message.mutable_ended());
  }
}

void MergeInto(const AnswerContext& context, GenerationUpdate update,
               v1::GenerateResponse& message) {
  if (update.started) SetStart(context, *update.started, message);
  for (SampleDelta& delta : update.deltas) {
    MergeDelta(delta, context.tokenizer, CompletionOf(delta.index, message));
  }
  AddLogprobs(update.prompt_logprobs, context.tokenizer,
              *message.mutable_prompt_logprobs());
  if (update.ended) SetSummary(*update.ended, message);
}

size_t OutputBytes(const GenerationUpdate& update) {
  // Of a token id; of a token with its log-probability and bytes.
  constexpr size_t kTokenBytes = 3;
  constexpr size_t kLogprobBytes = 20;
  if (update.started) return 0;
  size_t bytes = 0;
  for (const SampleDelta& delta : update.deltas) {
    bytes += delta.text.size() + kTokenBytes * delta.token_ids.size();
    for (const PositionLogprobs& position : delta.logprobs) {
      bytes += kLogprobBytes * (1 + position.top.size());
    }
  }
  return bytes;
}

}  // namespace binarymos
