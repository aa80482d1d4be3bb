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

// Fills `weights` with exp((logit - largest) / temperature): the likeliest has
// weight 1.
void ComputeWeights(std::span<const float> logits, float largest,
                    float temperature, std::vector<float>& weights) {
  const size_t size = logits.size();
  weights.resize(size);
  float* out = weights.data();
  for (size_t i = 0; i < size; ++i) {
    out[i] = ExpNonPositive((logits[i] - largest) / temperature);
  }
}

// Weights are added as integers, in units of kUnit: then the order does not
// matter, and a device may have its own. 2^20 of them fit 64 bits. What is
// below a unit counts as nothing.
constexpr float kUnit = 0x1p-43f;
uint64_t InUnits(float weight) {
  return static_cast<uint64_t>(weight * 0x1p43f);
}

// The sum of the weights of at least `floor`, and of every kSumBlock of them.
constexpr size_t kSumBlock = 256;
uint64_t SumWeights(std::span<const float> weights, float floor,
                    std::vector<uint64_t>& block_sums) {
  // InUnits in halves of 22 and 21 bits, whose sums over a block fit 32.
  constexpr float kHalf = 0x1p22f;
  constexpr float kOtherHalf = 0x1p21f;
  const int32_t floor_bits = BitsOf(floor);
  block_sums.clear();
  uint64_t total = 0;
  for (size_t begin = 0; begin < weights.size(); begin += kSumBlock) {
    const size_t end = std::min(begin + kSumBlock, weights.size());
    int32_t high_sum = 0;
    int32_t low_sum = 0;
    for (size_t i = begin; i < end; ++i) {
      const int32_t bits = BitsOf(weights[i]);
      const int32_t below = (bits - floor_bits) >> 31;
      const float scaled = FromBits(bits & ~below) * kHalf;
      const auto high = static_cast<int32_t>(scaled);
      const float rest = scaled - static_cast<float>(high);
      high_sum += high;
      low_sum += static_cast<int32_t>(rest * kOtherHalf);
    }
    const uint64_t sum = (static_cast<uint64_t>(high_sum) << 21) +
                         static_cast<uint64_t>(low_sum);
    block_sums.push_back(sum);
    total += sum;
  }
  return total;
}

// Candidates are compared as integers: the order-preserving bits of a logit or
// weight above the inverted id, so that larger means likelier, and of equal
// ones the smaller id.
uint64_t MakeKey(float value, size_t token) {
  const auto bits = std::bit_cast<uint32_t>(value + 0.0f);  // no -0
  const uint32_t ordered = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return (uint64_t{ordered} << 32) | static_cast<uint32_t>(~token);
}

TokenId TokenOf(uint64_t key) {
  return static_cast<TokenId>(~static_cast<uint32_t>(key));
}

// Of a key that was made of a weight.
float WeightOf(uint64_t key) {
  return std::bit_cast<float>(static_cast<uint32_t>(key >> 32) ^ 0x80000000u);
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

// The last token that may be drawn, when they are ranked by weight and equal
// ones by id.
struct Cut {
  float weight = kUnit;
  TokenId token = std::numeric_limits<TokenId>::max();
};

// The least sum that reaches `share` of `total`.
uint64_t ShareOf(float share, uint64_t total) {
  const double exact = static_cast<double>(share) * static_cast<double>(total);
  auto sum = static_cast<uint64_t>(exact);
  if (static_cast<double>(sum) < exact) ++sum;
  return std::clamp<uint64_t>(sum, 1, total);
}

// Draws from the k likeliest, of which top_p and min_p leave some.
TokenId DrawFromTopK(std::span<const float> logits, float largest,
                     const SamplingParams& params, uint64_t random,
                     SamplerScratch& scratch) {
  std::vector<uint64_t>& keys = scratch.keys;
  SelectTop(logits, params.top_k, keys);
  for (uint64_t& key : keys) {
    const TokenId token = TokenOf(key);
    key = MakeKey(
        ExpNonPositive((logits[token] - largest) / params.temperature), token);
  }
  std::sort(keys.begin(), keys.end(), std::greater<>());

  uint64_t enough = 0;
  for (uint64_t key : keys) enough += InUnits(WeightOf(key));
  if (params.top_p < 1.0f) enough = ShareOf(params.top_p, enough);
  uint64_t kept = 0;
  size_t count = 0;
  while (kept < enough && WeightOf(keys[count]) >= params.min_p) {
    kept += InUnits(WeightOf(keys[count++]));
  }
  keys.resize(count);
  std::sort(keys.begin(), keys.end(),
            [](uint64_t a, uint64_t b) { return TokenOf(a) < TokenOf(b); });
  uint64_t left = MultiplyHigh(random, kept);
  for (uint64_t key : keys) {
    const uint64_t units = InUnits(WeightOf(key));
    if (left < units) return TokenOf(key);
    left -= units;
  }
  return kNoToken;  // not reached: left < kept
}

// top_p among all tokens. Sorts no more candidates than it keeps, to a factor
// of four.
Cut CutTopP(const SamplingParams& params, SamplerScratch& scratch) {
  const std::vector<float>& weights = scratch.weights;
  const uint64_t mass = SumWeights(weights, kUnit, scratch.block_sums);
  const uint64_t enough = ShareOf(params.top_p, mass);
  // Tokens below this many units sum to less than what top_p leaves out, so
  // the others are enough.
  const uint64_t negligible = (mass - enough) / weights.size();
  const double floor =
      static_cast<double>(std::max<uint64_t>(negligible, 1)) * double{kUnit};
  std::vector<uint64_t>& keys = scratch.keys;
  keys.clear();
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] >= floor) keys.push_back(MakeKey(weights[i], i));
  }
  size_t count = 0;
  size_t num_sorted = 0;
  uint64_t kept = 0;
  while (kept < enough) {
    if (count == num_sorted) {
      const auto begin = keys.begin() + static_cast<ptrdiff_t>(num_sorted);
      num_sorted = std::min(keys.size(), std::max<size_t>(128, 4 * num_sorted));
      const auto end = keys.begin() + static_cast<ptrdiff_t>(num_sorted);
      std::nth_element(begin, end, keys.end(), std::greater<>());
      std::sort(begin, end, std::greater<>());
    }
    kept += InUnits(weights[TokenOf(keys[count++])]);
  }
  const TokenId last = TokenOf(keys[count - 1]);
  return {weights[last], last};
}

// Draws from the tokens of at least `floor` in order of their ids. REQUIRES:
// one of them has a unit.
TokenId Draw(const SamplerScratch& scratch, float floor, uint64_t total,
             uint64_t random) {
  uint64_t left = MultiplyHigh(random, total);
  size_t block = 0;
  while (left >= scratch.block_sums[block]) left -= scratch.block_sums[block++];
  size_t i = block * kSumBlock;
  for (;; ++i) {
    if (scratch.weights[i] < floor) continue;
    const uint64_t units = InUnits(scratch.weights[i]);
    if (left < units) return static_cast<TokenId>(i);
    left -= units;
  }
}

// REQUIRES: a token is not masked.
TokenId Choose(std::span<const float> logits, float largest,
               const SamplingParams& params, uint64_t random,
               SamplerScratch& scratch) {
  if (params.temperature == 0.0f) {
    return static_cast<TokenId>(
        std::find(logits.begin(), logits.end(), largest) - logits.begin());
  }
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < logits.size()) {
    return DrawFromTopK(logits, largest, params, random, scratch);
  }
  std::vector<float>& weights = scratch.weights;
  ComputeWeights(logits, largest, params.temperature, weights);
  const Cut cut = params.top_p < 1.0f ? CutTopP(params, scratch) : Cut{};
  for (size_t i = static_cast<size_t>(cut.token) + 1; i < weights.size(); ++i) {
    weights[i] = weights[i] == cut.weight ? 0.0f : weights[i];
  }
  const float floor = std::max(cut.weight, params.min_p);
  const uint64_t total = SumWeights(weights, floor, scratch.block_sums);
  return Draw(scratch, floor, total, random);
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

LogSoftmax::LogSoftmax(float largest, uint64_t total_units)
    : largest_(largest),
      log_total_(std::log(static_cast<double>(total_units) * double{kUnit})) {}

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
  ComputeWeights(logits, largest, 1.0f, scratch.weights);
  const LogSoftmax log_softmax(
      largest, SumWeights(scratch.weights, kUnit, scratch.block_sums));
  const auto logprob = [&](TokenId token) {
    return TokenLogprob{token, log_softmax.Of(logits[token])};
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
  BINARYMOS_CHECK(vocab_size >= 1 && vocab_size <= 1 << 20) << vocab_size;
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
  sequence.keeps_history = params.has_penalties();
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
  const uint64_t random =
      PhiloxWord(params.seed, sequence.sample_index, row.position);
  result.token = Choose(logits, largest, params, random, scratch);
  if (row.num_logprobs >= 0) {
    ComputeLogprobs(row.logits, result.token, row.num_logprobs, scratch,
                    result.logprobs);
  }
  ++sequence.num_generated;
  if (sequence.keeps_history) See(sequence, result.token, /*is_output=*/true);
}

}  // namespace binarymos
