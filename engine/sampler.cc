#include "engine/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <utility>

#include "engine/core/check.h"
#include "engine/core/philox.h"

namespace binarymos {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

// The loops over the vocabulary compare floats as integers and select by masks:
// the compiler does not turn float comparisons, which may trap, into vector
// code. Measured on 32,000 logits: a third of the time.
int32_t BitsOf(float value) { return std::bit_cast<int32_t>(value); }
float FromBits(int32_t bits) { return std::bit_cast<float>(bits); }

// e^x for x <= 0, to about one ulp (Cephes' expf); 0 below -87, where f32
// nears its end.
inline float ExpNonPositive(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds
  // Bits of floats with the sign set ascend as the floats descend.
  const int32_t lowest = BitsOf(-87.0f);
  const int32_t bits = BitsOf(x) | std::numeric_limits<int32_t>::min();
  const int32_t below = (lowest - bits) >> 31;  // all ones if x < -87, else 0
  const float clamped = FromBits((lowest & below) | (bits & ~below));
  const float shifted = clamped * 1.44269504088896341f + kRound;
  const float n = shifted - kRound;
  const float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float mantissa = (p * (r * r) + r) + 1.0f;
  // `shifted` ends in the bits of n; they move to the exponent of 2^n.
  const auto exponent =
      (static_cast<uint32_t>(BitsOf(shifted)) << 23) + (127u << 23);
  const float result = mantissa * std::bit_cast<float>(exponent);
  return FromBits(BitsOf(result) & ~below);
}

// REQUIRES: not empty, no NaN.
float Largest(std::span<const float> values) {
  // Turns bits into integers in the order of the floats, and back.
  const auto ordered = [](int32_t bits) {
    return bits ^ ((bits >> 31) & std::numeric_limits<int32_t>::max());
  };
  int32_t largest = std::numeric_limits<int32_t>::min();
  for (float value : values) {
    const int32_t candidate = ordered(BitsOf(value));
    largest = candidate > largest ? candidate : largest;
  }
  return FromBits(ordered(largest));
}

// Fills `weights` with exp((logit - largest) / temperature), so the likeliest
// has weight 1, sums them by blocks and returns the sum of the blocks.
constexpr size_t kSumBlock = 256;
double ComputeWeights(std::span<const float> logits, float largest,
                      float temperature, SamplerScratch& scratch) {
  const size_t size = logits.size();
  scratch.weights.resize(size);
  float* weights = scratch.weights.data();
  for (size_t i = 0; i < size; ++i) {
    weights[i] = ExpNonPositive((logits[i] - largest) / temperature);
  }
  scratch.block_sums.clear();
  double total = 0.0;
  for (size_t begin = 0; begin < size; begin += kSumBlock) {
    constexpr size_t kLanes = 8;
    double lanes[kLanes] = {};
    const size_t end = std::min(begin + kSumBlock, size);
    size_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      for (size_t j = 0; j < kLanes; ++j) lanes[j] += weights[i + j];
    }
    for (; i < end; ++i) lanes[0] += weights[i];
    double sum = 0.0;
    for (double lane : lanes) sum += lane;
    scratch.block_sums.push_back(sum);
    total += sum;
  }
  return total;
}

// Candidates are compared as integers: the logit's order-preserving bits above
// the inverted id, so that larger means likelier, and of equal ones the smaller
// id.
uint64_t MakeKey(float logit, size_t token) {
  const auto bits = std::bit_cast<uint32_t>(logit + 0.0f);  // no -0
  const uint32_t ordered = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return (uint64_t{ordered} << 32) | static_cast<uint32_t>(~token);
}

TokenId TokenOf(uint64_t key) {
  return static_cast<TokenId>(~static_cast<uint32_t>(key));
}

// Puts the keys of the `k` likeliest unmasked tokens into `keys`, likeliest
// first. One pass: a buffer of 2k is cut to k whenever it is full, and raises
// the bar for what follows.
void SelectTop(std::span<const float> logits, size_t k,
               std::vector<uint64_t>& keys) {
  keys.clear();
  const size_t capacity = std::max<size_t>(2 * k, 128);
  float bar = kMasked;
  const auto cut = [&] {
    std::nth_element(keys.begin(), keys.begin() + (k - 1), keys.end(),
                     std::greater<>());
    keys.resize(k);
  };
  for (size_t token = 0; token < logits.size(); ++token) {
    // One that equals the bar loses to the k kept ones, whose ids are smaller.
    if (logits[token] <= bar) continue;
    keys.push_back(MakeKey(logits[token], token));
    if (keys.size() == capacity) {
      cut();
      bar = logits[TokenOf(keys[k - 1])];
    }
  }
  if (keys.size() > k) cut();
  std::sort(keys.begin(), keys.end(), std::greater<>());
}

// Draws from all tokens in order of their ids.
TokenId DrawFromAll(const SamplerScratch& scratch, double total, double u) {
  const double target = u * total;
  const std::vector<float>& weights = scratch.weights;
  double before = 0.0;
  size_t last = 0;
  for (size_t block = 0; block < scratch.block_sums.size(); ++block) {
    const double after = before + scratch.block_sums[block];
    if (target < after) {
      const size_t end = std::min((block + 1) * kSumBlock, weights.size());
      double sum = before;
      for (size_t i = block * kSumBlock; i < end; ++i) {
        if (weights[i] == 0.0f) continue;
        sum += weights[i];
        last = i;
        if (target < sum) return static_cast<TokenId>(i);
      }
      // The block's sum was rounded in another order: its last one it is.
      return static_cast<TokenId>(last);
    }
    before = after;
  }
  for (size_t i = weights.size(); i-- > 0;) {
    if (weights[i] > 0.0f) return static_cast<TokenId>(i);
  }
  return kNoToken;
}

// Draws from the first `count` of `keys`, likeliest first. weight_of(i) is the
// weight of keys[i]; they sum to `mass`.
template <typename WeightOf>
TokenId DrawFromTop(const std::vector<uint64_t>& keys, size_t count,
                    double mass, double u, WeightOf weight_of) {
  const double target = u * mass;
  double sum = 0.0;
  for (size_t i = 0; i < count; ++i) {
    sum += weight_of(i);
    if (target < sum) return TokenOf(keys[i]);
  }
  return TokenOf(keys[count - 1]);
}

// top_k, and top_p and min_p among the k.
TokenId DrawTopK(std::span<const float> logits, float largest,
                 const SamplingParams& params, double u,
                 SamplerScratch& scratch) {
  std::vector<uint64_t>& keys = scratch.keys;
  SelectTop(logits, params.top_k, keys);
  std::vector<float>& weights = scratch.weights;
  weights.clear();
  double mass = 0.0;
  for (uint64_t key : keys) {
    weights.push_back(
        ExpNonPositive((logits[TokenOf(key)] - largest) / params.temperature));
    mass += weights.back();
  }
  const double enough = params.top_p < 1.0f ? params.top_p * mass : mass;
  size_t count = 0;
  double kept = 0.0;
  while (count < keys.size() && kept < enough &&
         weights[count] >= params.min_p) {
    kept += weights[count++];
  }
  return DrawFromTop(keys, count, kept, u,
                     [&](size_t i) { return weights[i]; });
}

// top_p and min_p among all tokens. Sorts no more candidates than it keeps,
// to a factor of four.
TokenId DrawTopP(std::span<const float> logits, float largest,
                 const SamplingParams& params, double u,
                 SamplerScratch& scratch) {
  const double total =
      ComputeWeights(logits, largest, params.temperature, scratch);
  const std::vector<float>& weights = scratch.weights;
  const double enough = params.top_p < 1.0f ? params.top_p * total : total;
  // Tokens below this weight sum to less than half of what top_p leaves out,
  // so the others are enough.
  const double negligible =
      0.5 * (total - enough) / static_cast<double>(weights.size());
  const double floor = std::max<double>(params.min_p, negligible);
  std::vector<uint64_t>& keys = scratch.keys;
  keys.clear();
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] >= floor && weights[i] > 0.0f) {
      keys.push_back(MakeKey(logits[i], i));
    }
  }
  size_t count = 0;
  size_t num_sorted = 0;
  double kept = 0.0;
  while (count < keys.size() && kept < enough) {
    if (count == num_sorted) {
      const auto begin = keys.begin() + static_cast<ptrdiff_t>(num_sorted);
      num_sorted = std::min(keys.size(), std::max<size_t>(128, 4 * num_sorted));
      const auto end = keys.begin() + static_cast<ptrdiff_t>(num_sorted);
      std::nth_element(begin, end, keys.end(), std::greater<>());
      std::sort(begin, end, std::greater<>());
    }
    kept += weights[TokenOf(keys[count++])];
  }
  return DrawFromTop(keys, count, kept, u,
                     [&](size_t i) { return weights[TokenOf(keys[i])]; });
}

// REQUIRES: a token is not masked.
TokenId Choose(std::span<const float> logits, float largest,
               const SamplingParams& params, double u,
               SamplerScratch& scratch) {
  if (params.temperature == 0.0f) {
    return static_cast<TokenId>(
        std::find(logits.begin(), logits.end(), largest) - logits.begin());
  }
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < logits.size()) {
    return DrawTopK(logits, largest, params, u, scratch);
  }
  if (params.top_p < 1.0f || params.min_p > 0.0f) {
    return DrawTopP(logits, largest, params, u, scratch);
  }
  const double total =
      ComputeWeights(logits, largest, params.temperature, scratch);
  return DrawFromAll(scratch, total, u);
}

void ApplyMask(std::span<const uint32_t> allowed, std::span<float> logits) {
  for (size_t word = 0; word < allowed.size(); ++word) {
    if (allowed[word] == ~uint32_t{0}) continue;
    const size_t end = std::min(word * 32 + 32, logits.size());
    for (size_t token = word * 32; token < end; ++token) {
      if ((allowed[word] >> (token % 32) & 1u) == 0) logits[token] = kMasked;
    }
  }
}

// `count` as in Sampler::Sequence::seen_counts, not 0.
float Penalize(float logit, const SamplingParams& params, int32_t count) {
  if (logit == kMasked) return logit;
  float penalized = logit > 0.0f ? logit / params.repetition_penalty
                                 : logit * params.repetition_penalty;
  const auto num_output = static_cast<float>(count - 1);
  penalized -= params.frequency_penalty * num_output;
  if (count > 1) penalized -= params.presence_penalty;
  constexpr float kLimit = std::numeric_limits<float>::max();
  return std::clamp(penalized, -kLimit, kLimit);
}

}  // namespace

bool AllFinite(std::span<const float> logits) {
  constexpr uint32_t kExponent = 0x7f800000u;
  uint32_t bad = 0;
  for (float logit : logits) {
    bad |= (std::bit_cast<uint32_t>(logit) & kExponent) == kExponent ? 1u : 0u;
  }
  return bad == 0;
}

void ComputeLogprobs(std::span<const float> logits, TokenId chosen, int num_top,
                     SamplerScratch& scratch, PositionLogprobs& logprobs) {
  const float largest = Largest(logits);
  const double log_total =
      std::log(ComputeWeights(logits, largest, 1.0f, scratch));
  const auto logprob = [&](TokenId token) {
    const double below = static_cast<double>(logits[token]) - largest;
    return TokenLogprob{token, static_cast<float>(below - log_total)};
  };
  logprobs.chosen = logprob(chosen);
  logprobs.top.clear();
  if (num_top <= 0) return;
  SelectTop(logits, std::min<size_t>(num_top, logits.size()), scratch.keys);
  for (uint64_t key : scratch.keys) {
    logprobs.top.push_back(logprob(TokenOf(key)));
  }
}

Sampler::Sampler(int vocab_size, int max_num_seqs)
    : vocab_size_(vocab_size), sequences_(max_num_seqs) {
  BINARYMOS_CHECK_GE(vocab_size, 1);
}

void Sampler::AddSequence(SlotId slot, const SequenceInit& init) {
  BINARYMOS_CHECK(slot >= 0 && static_cast<size_t>(slot) < sequences_.size())
      << "slot " << slot;
  Sequence& sequence = sequences_[slot];
  BINARYMOS_CHECK(!sequence.active) << "slot " << slot;
  const SamplingParams& params = *init.sampling;
  sequence.active = true;
  sequence.params = params;
  sequence.sample_index = init.sample_index;
  sequence.num_generated = static_cast<int>(init.output.size());
  sequence.keeps_history = params.repetition_penalty != 1.0f ||
                           params.presence_penalty != 0.0f ||
                           params.frequency_penalty != 0.0f;
  if (!sequence.keeps_history) return;
  sequence.seen_counts.resize(vocab_size_);
  for (TokenId token : init.prompt) See(sequence, token, /*is_output=*/false);
  for (TokenId token : init.output) See(sequence, token, /*is_output=*/true);
}

void Sampler::RemoveSequence(SlotId slot) {
  Sequence& sequence = At(slot);
  sequence.active = false;
  for (TokenId token : sequence.seen) sequence.seen_counts[token] = 0;
  sequence.seen.clear();
}

const Sampler::Sequence& Sampler::At(SlotId slot) const {
  BINARYMOS_CHECK(slot >= 0 && static_cast<size_t>(slot) < sequences_.size() &&
                  sequences_[slot].active)
      << "slot " << slot;
  return sequences_[slot];
}

Sampler::Sequence& Sampler::At(SlotId slot) {
  return const_cast<Sequence&>(std::as_const(*this).At(slot));
}

bool Sampler::Suppresses(const Sequence& sequence) {
  return sequence.num_generated < sequence.params.min_tokens &&
         !sequence.params.suppressed_tokens.empty();
}

bool Sampler::TakesLargest(SlotId slot) const {
  const Sequence& sequence = At(slot);
  return sequence.params.temperature == 0.0f && !sequence.keeps_history &&
         !Suppresses(sequence);
}

void Sampler::AcceptLargest(SlotId slot) { ++At(slot).num_generated; }

void Sampler::See(Sequence& sequence, TokenId token, bool is_output) const {
  BINARYMOS_CHECK(token >= 0 && token < vocab_size_) << "token " << token;
  int32_t& count = sequence.seen_counts[token];
  if (count == 0) {
    sequence.seen.push_back(token);
    count = 1;
  }
  if (is_output) ++count;
}

std::span<const float> Sampler::Adjust(const Sequence& sequence,
                                       const SamplerRow& row, bool suppress,
                                       SamplerScratch& scratch) const {
  if (!suppress && row.allowed_tokens.empty() && sequence.seen.empty()) {
    return row.logits;
  }
  scratch.logits.assign(row.logits.begin(), row.logits.end());
  const std::span<float> logits = scratch.logits;
  if (suppress) {
    for (TokenId token : sequence.params.suppressed_tokens) {
      // A stop id beyond the vocabulary cannot be sampled anyway.
      if (token >= 0 && token < vocab_size_) logits[token] = kMasked;
    }
  }
  ApplyMask(row.allowed_tokens, logits);
  for (TokenId token : sequence.seen) {
    logits[token] =
        Penalize(logits[token], sequence.params, sequence.seen_counts[token]);
  }
  return logits;
}

void Sampler::Sample(const SamplerRow& row, SamplerScratch& scratch,
                     StepResultRow& result) {
  Sequence& sequence = At(row.slot);
  const SamplingParams& params = sequence.params;
  BINARYMOS_CHECK_EQ(row.logits.size(), static_cast<size_t>(vocab_size_));
  BINARYMOS_CHECK(row.allowed_tokens.empty() ||
                  row.allowed_tokens.size() ==
                      row.logits.size() / 32 + (vocab_size_ % 32 != 0));
  result.token = kNoToken;
  result.not_finite = !AllFinite(row.logits);
  if (result.not_finite) return;

  const bool suppress = Suppresses(sequence);
  std::span<const float> logits = Adjust(sequence, row, suppress, scratch);
  float largest = Largest(logits);
  if (largest == kMasked && suppress) {
    logits = Adjust(sequence, row, /*suppress=*/false, scratch);
    largest = Largest(logits);
  }
  if (largest == kMasked) {
    result.not_finite = true;
    return;
  }
  const double u =
      PhiloxUniform(params.seed, sequence.sample_index, row.position);
  result.token = Choose(logits, largest, params, u, scratch);
  if (row.num_logprobs >= 0) {
    ComputeLogprobs(row.logits, result.token, row.num_logprobs, scratch,
                    result.logprobs);
  }
  ++sequence.num_generated;
  if (sequence.keeps_history) See(sequence, result.token, /*is_output=*/true);
}

}  // namespace binarymos
