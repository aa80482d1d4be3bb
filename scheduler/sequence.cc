#include "scheduler/sequence.h"

#include <algorithm>
#include <utility>

#include "engine/core/check.h"

namespace binarymos {
namespace {

bool Contains(const std::vector<TokenId>& tokens, TokenId token) {
  return std::find(tokens.begin(), tokens.end(), token) != tokens.end();
}

}  // namespace

Sequence::Sequence(std::shared_ptr<const Request> request, int sample,
                   int max_model_len)
    : request_(std::move(request)),
      sample_(sample),
      tokens_(request_->prompt),
      max_output_tokens_(
          std::min(request_->max_tokens, max_model_len - num_prompt_tokens())) {
  place.times.arrival = request_->arrival;
}

int Sequence::num_computable_tokens() const {
  if (num_computed_ < num_tokens()) return num_tokens() - num_computed_;
  const bool newest_is_pending = num_computed_ < num_tokens() + num_pending_;
  const bool may_sample_again =
      num_output_tokens() + num_pending_ < max_output_tokens_;
  return newest_is_pending && may_sample_again ? 1 : 0;
}

void Sequence::Start(int num_tokens) {
  BINARYMOS_CHECK(num_pending_ == 0 && num_tokens < this->num_tokens());
  num_computed_ = num_tokens;
  tokens_.reserve(max_num_tokens());
}

bool Sequence::Advance(int num_tokens, StepId step) {
  BINARYMOS_CHECK_LE(num_tokens, num_computable_tokens());
  num_computed_ += num_tokens;
  if (num_computed_ < this->num_tokens() + num_pending_) return false;
  ++num_pending_;
  pending_step_ = step;
  return true;
}

std::optional<FinishReason> Sequence::Append(TokenId token) {
  BINARYMOS_CHECK_GT(num_pending_, 0);
  --num_pending_;
  const bool may_stop = num_output_tokens() >= request_->sampling.min_tokens;
  tokens_.push_back(token);
  if (may_stop && Contains(request_->eos_tokens, token)) {
    return FinishReason::kEos;
  }
  if (may_stop && Contains(request_->stop_tokens, token)) {
    return FinishReason::kStopToken;
  }
  if (num_output_tokens() >= max_output_tokens_) return reason_at_max_;
  return std::nullopt;
}

void Sequence::StopAfter(int num_tokens) {
  if (num_tokens > max_output_tokens_) return;
  max_output_tokens_ = num_tokens;
  reason_at_max_ = FinishReason::kStopString;
}

}  // namespace binarymos
