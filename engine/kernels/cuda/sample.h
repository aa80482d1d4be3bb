// Sampling: chooses a token from every row of logits, the one that
// engine/sampler.h would, and moves the state of its slot on.
//
// logits [.., vocab] f32; rows, results [steps's rows]; slots, sampled
// [max_num_seqs]; seen [max_num_seqs, vocab], suppressed [max_num_seqs,
// ceil(vocab / 32)], masks [.., ceil(vocab / 32)]; work [num_rows, vocab].
//
// Threads. A block has a row; a warp an eighth of it in a piece, a lane every
// 32nd element of that. The row is read several times, each time to one number
// over all threads (by shuffles, then through shared memory):
//   1. adjusted logits (mask, suppression, penalties), whether all are finite,
//      and the largest; greedy rows are done
//   2. top_k: how many reach a bar, the bar found by bisection over the bits of
//      a logit
//   3. weights, and their sum
//   4. top_p: how much reaches a bar, likewise over the bits of a weight
//   5. the sum of what is left by warps, of the warp's part by warps again, and
//      so on to the token on which the random number falls
// Sums of weights are integers, so their order does not matter. Once few enough
// candidates are left, bisection goes on over a list of them in shared memory.
//
// Bytes: 4 vocab to read and as many to write, then 4 vocab for each further
// reading, all in L2: 128 KB at 32,000, 1.3 us at 64 bytes a clock. Predicted
// for 1 to 132 rows of 32,000 on an H200: greedy 5 us; temperature 12 us (five
// readings and a division each); top_p or top_k 30 us (about ten readings and
// 25 rounds of 0.4 us over the list); 1.5 us more for each alternative whose
// log-probability is wanted.
#pragma once

#include "engine/kernels/cuda/device_code.h"
#include "engine/kernels/cuda/sample_math.h"
#include "engine/kernels/cuda/sample_state.h"

namespace binarymos::cuda {

struct Sample {
  static constexpr int kThreads = 256;

  const float* logits = nullptr;  // of rows from first_logit_row on
  int first_logit_row = 0;
  int num_rows = 0;
  int vocab = 0;                    // at most 2^20
  const SampleRow* rows = nullptr;  // a slot at most once
  const uint32_t* masks = nullptr;
  const uint32_t* suppressed = nullptr;
  SampleSlot* slots = nullptr;
  int32_t* seen = nullptr;  // 0, or 1 + occurrences in the output
  uint32_t* work = nullptr;
  int32_t* sampled = nullptr;  // a slot's token; 0 where there is none
  SampleResult* results = nullptr;
  TopLogit* tops = nullptr;  // [.., kMaxTopLogits]

  Grid grid() const { return {num_rows, 1}; }
  size_t shared_bytes() const { return sizeof(Shared); }

  template <typename Block>
  BINARYMOS_DEVICE void operator()(Block& block) const {
    const Row row = RowOf(static_cast<int>(block.x()));
    bool suppress = row.state.suppresses != 0 &&
                    row.state.num_generated < row.state.min_tokens;
    uint64_t best = Adjust(block, row, suppress);
    if (suppress && IsMasked(best)) {
      suppress = false;
      best = Adjust(block, row, suppress);
    }
    int token = -1;
    if (best != kNotFinite && !IsMasked(best)) {
      token = row.state.temperature == 0.0f
                  ? TokenOf(best)
                  : Draw(block, row, OfOrderedBits(ValueOf(best)));
    }
    SampleResult result{.token = token};
    if (token >= 0 && row.row.num_top >= 0) {
      result.logit = row.logits[token];
      LogSoftmax(block, row, result);
    }
    block.ForEach([&](int thread) {
      if (thread == 0) Finish(row, result);
    });
  }

 private:
  static constexpr int kWarps = kThreads / kWarp;
  static constexpr int kListed = 2048;

  // Everything about the block's row.
  struct Row {
    SampleRow row;
    SampleSlot state;
    const float* logits;
    const uint32_t* mask;  // null: all are allowed
    uint32_t* work;        // first ordered bits of logits, then weights
    int64_t index;         // of the result
  };

  // Ranks above it are bits that are larger, or equal with an id not above.
  struct Cut {
    uint32_t bits;
    int token;
  };
  static constexpr int kLast = 0x7fffffff;

  struct Tally {
    uint64_t count;
    uint64_t units;
  };
  struct Candidate {
    uint32_t bits;
    int32_t token;
  };
  struct Shared {
    Candidate list[kListed];
    int32_t counts[kThreads];
    Tally tallies[kWarps];
    uint64_t largest[kWarps];
  };
  template <typename Block>
  static BINARYMOS_DEVICE Shared& SharedOf(Block& block) {
    return *static_cast<Shared*>(block.shared());
  }

  // Larger keys are likelier tokens: bits in the order of the floats above the
  // inverted id.
  static constexpr uint64_t kNotFinite = ~uint64_t{0};
  static BINARYMOS_DEVICE uint64_t KeyOf(uint32_t ordered, int token) {
    return (uint64_t{ordered} << 32) | static_cast<uint32_t>(~token);
  }
  static BINARYMOS_DEVICE uint32_t ValueOf(uint64_t key) {
    return static_cast<uint32_t>(key >> 32);
  }
  static BINARYMOS_DEVICE int TokenOf(uint64_t key) {
    return static_cast<int>(~static_cast<uint32_t>(key));
  }
  static BINARYMOS_DEVICE bool IsMasked(uint64_t key) {
    return ValueOf(key) < kLowestOrdered;
  }

  static BINARYMOS_DEVICE bool IsSet(const uint32_t* words, int bit) {
    return (words[bit / 32] >> (bit % 32) & 1u) != 0;
  }
  BINARYMOS_DEVICE int words() const { return (vocab + 31) / 32; }

  BINARYMOS_DEVICE Row RowOf(int index) const {
    Row row{.row = rows[index]};
    row.state = slots[row.row.slot];
    row.logits =
        logits + (row.row.logit_row - first_logit_row) * int64_t{vocab};
    row.mask =
        row.row.mask < 0 ? nullptr : masks + row.row.mask * int64_t{words()};
    row.work = work + index * int64_t{vocab};
    row.index = index;
    return row;
  }

  // f(i) for the thread's elements of [begin, end), of which each warp has a
  // piece of `piece`.
  template <typename F>
  static BINARYMOS_DEVICE void ForOwn(int thread, int begin, int end, int piece,
                                      F f) {
    const int first = begin + thread / kWarp * piece;
    const int last = first + piece < end ? first + piece : end;
    BINARYMOS_UNROLL_BY_16
    for (int i = first + thread % kWarp; i < last; i += kWarp) f(i);
  }
  template <typename F>
  BINARYMOS_DEVICE void ForOwn(int thread, F f) const {
    ForOwn(thread, 0, vocab, PieceOf(vocab), f);
  }
  static BINARYMOS_DEVICE int PieceOf(int size) {
    return (size + kWarps - 1) / kWarps;
  }

  template <typename Block>
  static BINARYMOS_DEVICE uint64_t
  Largest(Block& block, typename Block::template PerThread<uint64_t>& keys) {
    BINARYMOS_UNROLL
    for (int mask = kWarp / 2; mask > 0; mask /= 2) {
      auto others = block.ShuffleXor(keys, mask);
      block.ForEach([&](int thread) {
        if (others[thread] > keys[thread]) keys[thread] = others[thread];
      });
    }
    Shared& shared = SharedOf(block);
    block.Sync();  // what was there has been read
    block.ForEach([&](int thread) {
      if (thread % kWarp == 0) shared.largest[thread / kWarp] = keys[thread];
    });
    block.Sync();
    uint64_t largest = 0;
    BINARYMOS_UNROLL
    for (int warp = 0; warp < kWarps; ++warp) {
      if (shared.largest[warp] > largest) largest = shared.largest[warp];
    }
    return largest;
  }

  // Leaves the sums of the warps in shared.tallies.
  template <typename Block>
  static BINARYMOS_DEVICE Tally
  Sum(Block& block, typename Block::template PerThread<Tally>& tallies) {
    BINARYMOS_UNROLL
    for (int mask = kWarp / 2; mask > 0; mask /= 2) {
      auto others = block.ShuffleXor(tallies, mask);
      block.ForEach([&](int thread) {
        tallies[thread].count += others[thread].count;
        tallies[thread].units += others[thread].units;
      });
    }
    Shared& shared = SharedOf(block);
    block.Sync();  // what was there has been read
    block.ForEach([&](int thread) {
      if (thread % kWarp == 0) shared.tallies[thread / kWarp] = tallies[thread];
    });
    block.Sync();
    Tally sum{};
    BINARYMOS_UNROLL
    for (int warp = 0; warp < kWarps; ++warp) {
      sum.count += shared.tallies[warp].count;
      sum.units += shared.tallies[warp].units;
    }
    return sum;
  }

  // The likeliest token's key, or kNotFinite. Rows that are not greedy leave
  // ordered bits of adjusted logits in `work`.
  template <typename Block>
  BINARYMOS_DEVICE uint64_t Adjust(Block& block, const Row& row,
                                   bool suppress) const {
    const int32_t* const counts = row.state.keeps_history != 0
                                      ? seen + row.row.slot * int64_t{vocab}
                                      : nullptr;
    const uint32_t* const waiting =
        suppress ? suppressed + row.row.slot * int64_t{words()} : nullptr;
    const bool draws = row.state.temperature != 0.0f;
    typename Block::template PerThread<uint64_t> keys;
    block.ForEach([&](int thread) {
      uint64_t best = 0;
      uint32_t bad = 0;
      ForOwn(thread, [&](int i) {
        const float raw = row.logits[i];
        bad |= (FloatBits(raw) & kExponent) == kExponent ? 1u : 0u;
        float logit = raw;
        if ((waiting != nullptr && IsSet(waiting, i)) ||
            (row.mask != nullptr && !IsSet(row.mask, i))) {
          logit = 0.0f - Infinity();
        } else if (counts != nullptr && counts[i] != 0) {
          logit = Penalize(row.state, logit, counts[i]);
        }
        const uint32_t ordered = OrderedBits(logit);
        if (draws) row.work[i] = ordered;
        const uint64_t key = KeyOf(ordered, i);
        if (key > best) best = key;
      });
      keys[thread] = bad != 0 ? kNotFinite : best;
    });
    return Largest(block, keys);
  }

  static BINARYMOS_DEVICE float Penalize(const SampleSlot& state, float logit,
                                         int32_t count) {
    float penalized = logit > 0.0f ? logit / state.repetition_penalty
                                   : logit * state.repetition_penalty;
    penalized -= state.frequency_penalty * static_cast<float>(count - 1);
    if (count > 1) penalized -= state.presence_penalty;
    const float limit = BitsFloat(0x7f7fffffu);
    if (penalized < 0.0f - limit) return 0.0f - limit;
    return limit < penalized ? limit : penalized;
  }

  template <typename Block>
  BINARYMOS_DEVICE int Draw(Block& block, const Row& row, float largest) const {
    const Cut top_k = CutTopK(block, row, OrderedBits(largest));
    const Tally all = Weigh(block, row, largest, top_k);
    Cut cut{kSmallestWeightBits, kLast};
    if (row.state.top_p < 1.0f) {
      cut = Find<true>(block, row, kSmallestWeightBits, kLargestWeightBits + 1,
                       all.count, ShareOf(row.state.top_p, all.units));
    }
    const uint32_t min_p = FloatBits(row.state.min_p);
    if (min_p > cut.bits) cut = {min_p, kLast};
    return DrawAbove(block, row, cut);
  }

  template <typename Block>
  BINARYMOS_DEVICE Cut CutTopK(Block& block, const Row& row,
                               uint32_t largest) const {
    const Cut none{0, kLast};
    if (row.state.top_k <= 0 || row.state.top_k >= vocab) return none;
    const auto k = static_cast<uint64_t>(row.state.top_k);
    const uint64_t unmasked =
        TallyOf<false>(block, row, kNoList, {kLowestOrdered, kLast}).count;
    if (unmasked <= k) return none;
    return Find<false>(block, row, kLowestOrdered, largest + 1, unmasked, k);
  }

  // Replaces ordered logits by bits of weights, 0 below the cut; the tally of
  // those that count.
  template <typename Block>
  BINARYMOS_DEVICE Tally Weigh(Block& block, const Row& row, float largest,
                               Cut cut) const {
    const float temperature = row.state.temperature;
    typename Block::template PerThread<Tally> tallies;
    block.ForEach([&](int thread) {
      Tally tally{};
      ForOwn(thread, [&](int i) {
        const uint32_t ordered = row.work[i];
        const float logit = OfOrderedBits(ordered);
        float weight = WeightExp((logit - largest) / temperature);
        if (!IsAbove(cut, ordered, i)) weight = 0.0f;
        const uint32_t bits = FloatBits(weight);
        row.work[i] = bits;
        tally.count += bits >= kSmallestWeightBits ? 1 : 0;
        tally.units += InUnits(bits);
      });
      tallies[thread] = tally;
    });
    return Sum(block, tallies);
  }

  static BINARYMOS_DEVICE bool IsAbove(Cut cut, uint32_t bits, int token) {
    return bits > cut.bits || (bits == cut.bits && token <= cut.token);
  }

  // What is above the cut, in the list of `listed` candidates or in all of the
  // row.
  static constexpr int kNoList = -1;
  template <bool kUnits, typename Block>
  BINARYMOS_DEVICE Tally TallyOf(Block& block, const Row& row, int listed,
                                 Cut cut) const {
    const Shared& shared = SharedOf(block);
    typename Block::template PerThread<Tally> tallies;
    block.ForEach([&](int thread) {
      Tally tally{};
      const auto add = [&](uint32_t bits, int token) {
        if (!IsAbove(cut, bits, token)) return;
        ++tally.count;
        if (kUnits) tally.units += InUnits(bits);
      };
      if (listed == kNoList) {
        ForOwn(thread, [&](int i) { add(row.work[i], i); });
      } else {
        for (int i = thread; i < listed; i += kThreads) {
          add(shared.list[i].bits, shared.list[i].token);
        }
      }
      tallies[thread] = tally;
    });
    return Sum(block, tallies);
  }

  // The highest cut above which there are `need` tokens, or units. REQUIRES:
  // there are so many from `low` on, `count` tokens, and not from `high` on.
  template <bool kUnits, typename Block>
  BINARYMOS_DEVICE Cut Find(Block& block, const Row& row, uint32_t low,
                            uint32_t high, uint64_t count,
                            uint64_t need) const {
    int listed = kNoList;
    uint64_t count_above = 0;  // from `high` on
    BINARYMOS_NO_UNROLL
    while (high - low > 1) {
      if (listed == kNoList && count <= kListed) {
        listed = List(block, row, low);
      }
      const uint32_t middle = low + (high - low) / 2;
      const Tally tally = TallyOf<kUnits>(block, row, listed, {middle, kLast});
      if ((kUnits ? tally.units : tally.count) >= need) {
        low = middle;
        count = tally.count;
      } else {
        high = middle;
        count_above = tally.count;
      }
    }
    if (count - count_above == 1) return {low, kLast};
    // Of equal ones the first: ids up to `last` are enough, up to `few` not.
    int few = -1;
    int last = vocab - 1;
    BINARYMOS_NO_UNROLL
    while (last - few > 1) {
      const int middle = few + (last - few) / 2;
      const Tally tally = TallyOf<kUnits>(block, row, listed, {low, middle});
      if ((kUnits ? tally.units : tally.count) >= need) {
        last = middle;
      } else {
        few = middle;
      }
    }
    return {low, last};
  }

  // Lists the elements from `low` on, at most kListed; how many they are.
  template <typename Block>
  BINARYMOS_DEVICE int List(Block& block, const Row& row, uint32_t low) const {
    Shared& shared = SharedOf(block);
    block.ForEach([&](int thread) {
      int count = 0;
      ForOwn(thread, [&](int i) { count += row.work[i] >= low ? 1 : 0; });
      shared.counts[thread] = count;
    });
    block.Sync();
    int total = 0;
    for (int t = 0; t < kThreads; ++t) total += shared.counts[t];
    block.ForEach([&](int thread) {
      int next = 0;
      for (int t = 0; t < thread; ++t) next += shared.counts[t];
      ForOwn(thread, [&](int i) {
        if (row.work[i] < low) return;
        shared.list[next++] = {row.work[i], i};
      });
    });
    block.Sync();
    return total;
  }

  // The token on which the row's random number falls. REQUIRES: there are units
  // above the cut.
  template <typename Block>
  BINARYMOS_DEVICE int DrawAbove(Block& block, const Row& row, Cut cut) const {
    const Shared& shared = SharedOf(block);
    int begin = 0;
    int end = vocab;
    uint64_t left = SumAbove(block, row, cut, begin, end);
    left = MultiplyHigh(RandomWord(row.state.seed, row.state.sample_index,
                                   static_cast<uint32_t>(row.row.position)),
                        left);
    BINARYMOS_NO_UNROLL
    while (true) {
      const int piece = PieceOf(end - begin);
      int warp = 0;
      while (warp < kWarps - 1 && left >= shared.tallies[warp].units) {
        left -= shared.tallies[warp++].units;
      }
      begin += warp * piece;
      if (piece == 1) return begin;
      if (begin + piece < end) end = begin + piece;
      SumAbove(block, row, cut, begin, end);
    }
  }

  // Units above the cut in [begin, end), with those of the warps' pieces.
  template <typename Block>
  BINARYMOS_DEVICE uint64_t SumAbove(Block& block, const Row& row, Cut cut,
                                     int begin, int end) const {
    typename Block::template PerThread<Tally> tallies;
    block.ForEach([&](int thread) {
      Tally tally{};
      ForOwn(thread, begin, end, PieceOf(end - begin), [&](int i) {
        const uint32_t bits = row.work[i];
        if (IsAbove(cut, bits, i)) tally.units += InUnits(bits);
      });
      tallies[thread] = tally;
    });
    return Sum(block, tallies).units;
  }

  // What log-probabilities are made of, of the logits as they came.
  template <typename Block>
  BINARYMOS_DEVICE void LogSoftmax(Block& block, const Row& row,
                                   SampleResult& result) const {
    const uint64_t best = LargestBelow(block, row, kNotFinite);
    const float largest = OfOrderedBits(ValueOf(best));
    typename Block::template PerThread<Tally> tallies;
    block.ForEach([&](int thread) {
      Tally tally{};
      ForOwn(thread, [&](int i) {
        const float weight = WeightExp((row.logits[i] - largest) / 1.0f);
        tally.units += InUnits(FloatBits(weight));
      });
      tallies[thread] = tally;
    });
    result.largest = largest;
    result.total_units = Sum(block, tallies).units;
    const int num_top = row.row.num_top < vocab ? row.row.num_top : vocab;
    uint64_t key = best;
    BINARYMOS_NO_UNROLL
    for (int n = 0; n < num_top && n < kMaxTopLogits; ++n) {
      if (n > 0) key = LargestBelow(block, row, key);
      block.ForEach([&](int thread) {
        if (thread != 0) return;
        const int token = TokenOf(key);
        tops[row.index * kMaxTopLogits + n] = {token, row.logits[token]};
      });
    }
  }

  template <typename Block>
  BINARYMOS_DEVICE uint64_t LargestBelow(Block& block, const Row& row,
                                         uint64_t bound) const {
    typename Block::template PerThread<uint64_t> keys;
    block.ForEach([&](int thread) {
      uint64_t best = 0;
      ForOwn(thread, [&](int i) {
        const uint64_t key = KeyOf(OrderedBits(row.logits[i]), i);
        if (key < bound && key > best) best = key;
      });
      keys[thread] = best;
    });
    return Largest(block, keys);
  }

  // One thread: the slot has its token.
  BINARYMOS_DEVICE void Finish(const Row& row,
                               const SampleResult& result) const {
    const int slot = row.row.slot;
    results[row.index] = result;
    sampled[slot] = result.token < 0 ? 0 : result.token;
    if (result.token < 0) return;
    ++slots[slot].num_generated;
    if (row.state.keeps_history == 0) return;
    int32_t& count = seen[slot * int64_t{vocab} + result.token];
    count = count == 0 ? 2 : count + 1;
  }

  static constexpr uint32_t kExponent = 0x7f800000u;
};

}  // namespace binarymos::cuda
