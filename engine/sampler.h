// Chooses tokens from logits, on the host.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/api/batch_plan.h"
#include "engine/api/model_runner.h"
#include "engine/api/sampling_params.h"
#include "engine/api/types.h"

namespace binarymos {

// Working memory of one thread. Grows to what the largest row needed.
struct SamplerScratch {
  std::vector<float> logits;         // [vocab] after masks and penalties
  std::vector<float> weights;        // exp((logit - largest) / temperature)
  std::vector<uint64_t> block_sums;  // of weights, in units of 2^-43
  std::vector<uint64_t> keys;        // candidates, see sampler.cc
};

// A row of logits and what to do with it.
struct SamplerRow {
  SlotId slot = 0;
  int32_t position = 0;       // where the sampled token will stand
  int32_t num_logprobs = -1;  // as in BatchRow
  std::span<const uint32_t> allowed_tokens;  // as in BatchRow
  std::span<const float> logits;  // [vocab], as the model computed them
};

// Whether a row holds neither NaN nor Inf.
bool AllFinite(std::span<const float> logits);

// The log-softmax of logits whose largest is `largest` and whose weights
// exp(logit - largest) sum to `total_units` * 2^-43.
class LogSoftmax {
 public:
  LogSoftmax(float largest, uint64_t total_units);

  float Of(float logit) const {
    const double below = static_cast<double>(logit) - largest_;
    return static_cast<float>(below - log_total_) + 0.0f;  // no -0
  }

 private:
  float largest_;
  double log_total_;
};

// Log-softmax of `logits`: of `chosen` and of the `num_top` most likely tokens,
// most likely first, equal ones by id. REQUIRES: AllFinite(logits).
void ComputeLogprobs(std::span<const float> logits, TokenId chosen, int num_top,
                     SamplerScratch& scratch, PositionLogprobs& logprobs);

// Holds sampling parameters and penalty history by slot, and samples by them.
// What is drawn depends on the row, the slot's history, (seed, sample index,
// position) and nothing else.
//
// A token weighs exp((logit - largest) / temperature) in f32. top_k ranks
// tokens by logit, top_p those by weight, equal ones by id. Weights are counted
// in units of 2^-43, rounded down: sums are exact, so that
// engine/kernels/cuda/sample.h, which adds in another order, draws the same
// token. The 64 random bits times the sum of what is left fall on a token when
// those are lined up by id.
//
// AddSequence and RemoveSequence are confined to the serving-loop thread.
class Sampler {
 public:
  Sampler(int vocab_size, int max_num_seqs);

  int vocab_size() const { return vocab_size_; }

  // As ModelRunner.
  void AddSequence(SlotId slot, const SequenceInit& init);
  void RemoveSequence(SlotId slot);

  // Whether the slot's next token is the smallest id of the largest logit, so
  // that whoever knows it need not look at the logits: greedy, no penalties,
  // nothing suppressed. Masks are the row's and not looked at.
  bool TakesLargest(SlotId slot) const;
  // Counts that token as if Sample had chosen it. REQUIRES: TakesLargest(slot).
  void AcceptLargest(SlotId slot);

  // Writes token, logprobs and not_finite of `result` and adds the token to the
  // slot's history. A row that leaves no token to choose from is reported as
  // not finite: its request cannot go on either. min_tokens gives way where
  // otherwise nothing would be left.
  // Thread-safe for distinct slots, scratches and results.
  void Sample(const SamplerRow& row, SamplerScratch& scratch,
              StepResultRow& result);

 private:
  struct Sequence {
    bool active = false;
    SamplingParams params;
    uint32_t sample_index = 0;
    int num_generated = 0;
    // Only kept where a penalty is on. seen_counts[t] is 0 for a token that
    // was not seen, else 1 + its occurrences in the output.
    bool keeps_history = false;
    std::vector<int32_t> seen_counts;  // [vocab] or empty
    std::vector<TokenId> seen;         // tokens whose count is not 0
  };

  Sequence& At(SlotId slot);
  const Sequence& At(SlotId slot) const;
  // Whether suppressed_tokens are not to be sampled now.
  static bool Suppresses(const Sequence& sequence);
  void See(Sequence& sequence, TokenId token, bool is_output) const;
  // `row.logits` after masks and penalties: themselves, or a changed copy.
  std::span<const float> Adjust(const Sequence& sequence, const SamplerRow& row,
                                bool suppress, SamplerScratch& scratch) const;

  const int vocab_size_;
  std::vector<Sequence> sequences_;  // [max_num_seqs]
};

}  // namespace binarymos
