// Merges what Attention made of the splits of a query, where they were apart.
//
//   m = max m_s   out = sum over s of e^(m_s - m) a_s / sum of e^(m_s - m) l_s
//
// one split after the other, ascending: FactorsOf has a step. States [token,
// head, split][m, l, a of head_dim] f32  ->  out [tokens, heads, head_dim] f32
//
// Threads. A block per (token, head), a thread per dimension.
//
// Bytes: 4 (head_dim + 2) per split, from L2, 4 head_dim written. One sequence
// of 2,048 of 7B has 8 splits of 32 heads: 133 KB; predicted: a launch, 2 us.
#pragma once

#include "engine/kernels/cuda/attention_args.h"

namespace binarymos::cuda {

struct MergeAttention {
  static constexpr int kThreads = 128;

  AttentionArgs args;
  int64_t num_tokens = 0;

  Grid grid() const { return {num_tokens * args.num_heads, 1}; }
  size_t shared_bytes() const { return 0; }

  template <typename Block>
  BINARYMOS_DEVICE void operator()(Block& block) const {
    block.ForEach([&](int thread) {
      const int64_t token = block.x() / args.num_heads;
      const auto head = static_cast<int>(block.x() % args.num_heads);
      for (int d = thread; d < args.head_dim; d += kThreads) {
        args.out[block.x() * args.head_dim + d] = Merged(token, head, d);
      }
    });
  }

 private:
  BINARYMOS_DEVICE float Merged(int64_t token, int head, int d) const {
    const float* state = args.states + args.StateOf(token, head, 0);
    const int splits = NumSplits(args.positions[token]);
    float max = state[0];
    float sum = state[1];
    float total = state[2 + d];
    for (int split = 1; split < splits; ++split) {
      state += args.head_dim + 2;
      const MergeFactors factors = FactorsOf(max, state[0]);
      max = factors.max;
      sum = Fma(sum, factors.keep, state[1] * factors.add);
      total = Fma(total, factors.keep, state[2 + d] * factors.add);
    }
    return total / sum;
  }
};

}  // namespace binarymos::cuda
