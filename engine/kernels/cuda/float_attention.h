// Causal attention over a KV cache in f32, which is for comparisons: in the
// arithmetic of engine/kernels/cpu/attention_kernel.h, and with its bits.
//
//   score[j] = (q · k[j]) * scale
//   per tile of 64 positions: m' = max(m, max score), c = exp(m - m'),
//   p[j] = exp(score[j] - m'), sum = sum * c + Σ p[j], acc = acc * c + Σ p[j]
//   v[j]; splits of 256 positions from nothing, merged ascending
//
// q, out [tokens, heads, head_dim] f32; keys, values [blocks, kv_heads, 16,
// head_dim] f32
//
// Threads. A block has a KV head and the queries of some consecutive tokens of
// a sequence (with GQA, of all heads that share the KV head). Tiles of K and V
// lie in shared memory: while one is used, the next is copied (cp.async), so
// that a block waits for memory once and not once per tile. Scores: a thread
// per (query, position) keeps the 16 canonical lanes of its dot product in
// registers. Values: a thread per (query, dimension), positions ascending. One
// block does all splits of its queries, or, where few queries have long
// contexts, one split each, and MergeAttention follows: the same arithmetic.
//
// Bytes: K and V of the context once per block of queries, 8 head_dim per
// position. Measured on an H200, with caches in f16: 67 % of bandwidth for 8
// sequences of 2,048, 5.5 ms per layer for a prompt of 2,048 (7B).
#pragma once

#include "engine/kernels/cuda/attention_args.h"

namespace binarymos::cuda {

struct FloatAttention {
  static constexpr int kThreads = 128;
  // Queries (tokens times heads of a group) of a block: one token's group, or
  // about this many.
  static constexpr int kBlockQueries = 16;
  static constexpr int kMaxHeadDim = 512;
  static constexpr int kMaxTiles = 2;
  static constexpr int kVector = 4;     // elements per load
  static constexpr int kPad = kVector;  // against bank conflicts

  AttentionArgs args;
  float* keys = nullptr;  // written with args.new_keys only
  float* values = nullptr;

  static constexpr int TokensPerBlock(int group) {
    return group >= kBlockQueries ? 1 : kBlockQueries / group;
  }

  Grid grid() const {
    return {args.num_blocks * args.num_kv_heads,
            args.num_splits == 0 ? 1 : args.num_splits};
  }
  size_t shared_bytes() const {
    const size_t queries = size_t{1} * args.tokens_per_block * args.group();
    return args.num_tiles * 2 * sizeof(float) * kAttentionTile * Stride() +
           queries * sizeof(float) *
               (size_t{3} * Padded() + kAttentionTile + kScalars);
  }

  template <typename Block>
  BINARYMOS_DEVICE void operator()(Block& block) const {
    const auto kv_head = static_cast<int>(block.x() % args.num_kv_heads);
    const QueryBlock queries = args.blocks[block.x() / args.num_kv_heads];
    const Memory memory = Carve(static_cast<char*>(block.shared()));
    const bool apart = args.num_splits != 0;
    const auto first = static_cast<int>(apart ? block.y() : 0);
    const int end = apart ? first + 1 : queries.num_splits;
    if (first >= queries.num_splits) return;  // the whole block
    const int begin = first * kAttentionSplit;
    const int past = args.PastOf(queries, end);
    const int copied = args.CopiedOf(queries, past);
    CopyTile(block, queries, kv_head, begin, copied, memory);
    LoadQueries(block, queries, kv_head, memory);
    for (int split = first; split < end; ++split) {
      StartSplit(block, queries, memory);
      for (int i = 0; i < kAttentionSplit / kAttentionTile; ++i) {
        const int start = split * kAttentionSplit + i * kAttentionTile;
        if (start >= past) break;
        const int next = start + kAttentionTile;
        if (args.num_tiles == 2) {
          CopyTile(block, queries, kv_head, next, copied, memory);
          block.template AwaitCopies<1>();
        } else {
          block.template AwaitCopies<0>();
        }
        if (copied < past && past - start <= kAttentionTile) {
          AddNewPosition(block, queries, kv_head, past - 1, memory);
        }
        block.Sync();
        AddTile(block, queries, start, memory);
        block.Sync();  // everyone is done with the tile
        if (args.num_tiles == 1) {
          CopyTile(block, queries, kv_head, next, copied, memory);
        }
      }
      if (apart) {
        StoreStates(block, queries, kv_head, split, memory);
      } else {
        Merge(block, queries, split, memory);
      }
    }
    if (!apart) StoreOutputs(block, queries, kv_head, memory);
  }

 private:
  enum Scalar { kMax, kSum, kNewMax, kCorrection, kTotalMax, kTotalSum };
  static constexpr int kScalars = 8;

  // Shared memory. `queries` rows each.
  struct Memory {
    float* keys;     // [num_tiles][kAttentionTile, Stride()]
    float* values;   // same
    float* q;        // [Padded()], zeros past head_dim
    float* acc;      // [Padded()] of the split
    float* total;    // [Padded()] of the splits before it
    float* p;        // [kAttentionTile] scores, then weights
    float* scalars;  // [kScalars]
  };

  // head_dim up to whole vectors of lanes.
  constexpr int Padded() const {
    return static_cast<int>(CeilDiv(args.head_dim, kSumLanes)) * kSumLanes;
  }
  constexpr int Stride() const { return Padded() + kPad; }

  BINARYMOS_DEVICE int NumQueries(const QueryBlock& queries) const {
    return queries.num_tokens * args.group();
  }
  BINARYMOS_DEVICE int Position(const QueryBlock& queries, int query) const {
    return args.positions[queries.first_token + query / args.group()];
  }
  // Positions of the tile at `start` that the query sees.
  BINARYMOS_DEVICE int Visible(const QueryBlock& queries, int query,
                               int start) const {
    const int visible = Position(queries, query) + 1 - start;
    return visible < kAttentionTile ? visible : kAttentionTile;
  }
  BINARYMOS_DEVICE int Head(int kv_head, int query) const {
    return kv_head * args.group() + query % args.group();
  }
  BINARYMOS_DEVICE int64_t OutputOf(const QueryBlock& queries, int kv_head,
                                    int query) const {
    const int64_t token = queries.first_token + query / args.group();
    return (token * args.num_heads + Head(kv_head, query)) * args.head_dim;
  }

  BINARYMOS_DEVICE Memory Carve(char* shared) const {
    Memory memory;
    const int tile = args.num_tiles * kAttentionTile * Stride();
    const int queries = args.tokens_per_block * args.group();
    memory.keys = reinterpret_cast<float*>(shared);
    memory.values = memory.keys + tile;
    memory.q = reinterpret_cast<float*>(memory.values + tile);
    memory.acc = memory.q + queries * Padded();
    memory.total = memory.acc + queries * Padded();
    memory.p = memory.total + queries * Padded();
    memory.scalars = memory.p + queries * kAttentionTile;
    return memory;
  }

  template <typename Block>
  BINARYMOS_DEVICE void LoadQueries(Block& block, const QueryBlock& queries,
                                    int kv_head, const Memory& memory) const {
    block.ForEach([&](int thread) {
      for (int i = thread; i < NumQueries(queries) * Padded(); i += kThreads) {
        const int d = i % Padded();
        if (d >= args.head_dim) {
          memory.q[i] = 0.0f;
          continue;
        }
        const float* q = args.q + OutputOf(queries, kv_head, i / Padded());
        memory.q[i] = args.new_keys == nullptr
                          ? q[d]
                          : args.Rotated(q, queries.first_token, d);
      }
    });
  }

  // Puts the token's own key and value into its tile and into the cache.
  template <typename Block>
  BINARYMOS_DEVICE void AddNewPosition(Block& block, const QueryBlock& queries,
                                       int kv_head, int position,
                                       const Memory& memory) const {
    block.ForEach([&](int thread) {
      const int64_t token = queries.first_token;
      const int64_t from =
          (token * args.num_kv_heads + kv_head) * args.head_dim;
      const int64_t slot = args.kv_slots[token];
      const int64_t cell =
          ((slot / kKvPage * args.num_kv_heads + kv_head) * kKvPage +
           slot % kKvPage) *
          args.head_dim;
      const int to = BufferOf(position) + position % kAttentionTile * Stride();
      for (int d = thread; d < Padded(); d += kThreads) {
        const bool inside = d < args.head_dim;
        const float key =
            inside ? args.Rotated(args.new_keys + from, token, d) : 0.0f;
        const float value = inside ? args.new_values[from + d] : 0.0f;
        memory.keys[to + d] = key;
        memory.values[to + d] = value;
        if (!inside) continue;
        keys[cell + d] = key;
        values[cell + d] = value;
      }
    });
  }

  // Of the buffers that tiles take in turn, the one of the tile at `start`.
  BINARYMOS_DEVICE int BufferOf(int start) const {
    const int buffer = args.num_tiles == 1 ? 0 : start / kAttentionTile % 2;
    return buffer * kAttentionTile * Stride();
  }

  template <typename Block>
  BINARYMOS_DEVICE void StartSplit(Block& block, const QueryBlock& queries,
                                   const Memory& memory) const {
    block.ForEach([&](int thread) {
      for (int i = thread; i < NumQueries(queries) * Padded(); i += kThreads) {
        memory.acc[i] = 0.0f;
      }
      for (int i = thread; i < NumQueries(queries); i += kThreads) {
        memory.scalars[i * kScalars + kMax] = -Infinity();
        memory.scalars[i * kScalars + kSum] = 0.0f;
      }
    });
  }

  // Starts to copy the tile at `start`, positions below `past`, zeros past
  // head_dim; nothing if there is none. One group of copies in any case.
  template <typename Block>
  BINARYMOS_DEVICE void CopyTile(Block& block, const QueryBlock& queries,
                                 int kv_head, int start, int past,
                                 const Memory& memory) const {
    const int left = past - start;
    const int size = left < kAttentionTile ? left : kAttentionTile;
    block.ForEach([&](int thread) {
      const int32_t* table =
          args.block_tables + args.block_table_starts[queries.sequence];
      if (args.head_dim % kVector == 0) {
        CopyRows<kVector>(block, thread, table, kv_head, start, size, memory);
      } else {
        CopyRows<1>(block, thread, table, kv_head, start, size, memory);
      }
    });
    block.CommitCopies();
  }

  template <int kCount, typename Block>
  BINARYMOS_DEVICE void CopyRows(Block& block, int thread, const int32_t* table,
                                 int kv_head, int start, int size,
                                 const Memory& memory) const {
    using Elements = Pack<float, kCount>;
    const int columns = Padded() / kCount;
    for (int i = thread; i < size * columns; i += kThreads) {
      const int j = i / columns;
      const int d = i % columns * kCount;
      const int to = BufferOf(start) + j * Stride() + d;
      if (d >= args.head_dim) {
        *reinterpret_cast<Elements*>(memory.keys + to) = Elements{};
        *reinterpret_cast<Elements*>(memory.values + to) = Elements{};
        continue;
      }
      const int64_t page = table[(start + j) / kKvPage];
      const int64_t cell = ((page * args.num_kv_heads + kv_head) * kKvPage +
                            (start + j) % kKvPage) *
                               args.head_dim +
                           d;
      if constexpr (sizeof(Elements) == 16) {
        block.CopyAsync(memory.keys + to, keys + cell);
        block.CopyAsync(memory.values + to, values + cell);
      } else {
        memory.keys[to] = keys[cell];
        memory.values[to] = values[cell];
      }
    }
  }

  // q · k, canonical.
  BINARYMOS_DEVICE float Dot(const float* key, const float* q) const {
    float lanes[kSumLanes] = {};
    for (int k = 0; k < args.head_dim; k += kSumLanes) {
      BINARYMOS_UNROLL
      for (int i = 0; i < kSumLanes; i += kVector) {
        const auto elements = LoadPack<Pack<float, kVector>>(key + k + i);
        BINARYMOS_UNROLL
        for (int n = 0; n < kVector; n += 4) {
          const Floats4 four = LoadPack<Floats4>(q + k + i + n);
          BINARYMOS_UNROLL
          for (int m = 0; m < 4; ++m) {
            float& lane = lanes[i + n + m];
            lane = Fma(elements.v[n + m], four.v[m], lane);
          }
        }
      }
    }
    return ReduceAdd(lanes);
  }

  template <typename Block>
  BINARYMOS_DEVICE void AddTile(Block& block, const QueryBlock& queries,
                                int start, const Memory& memory) const {
    const int num_queries = NumQueries(queries);
    const float* tile_keys = memory.keys + BufferOf(start);
    const float* tile_values = memory.values + BufferOf(start);
    block.ForEach([&](int thread) {
      for (int i = thread; i < num_queries * kAttentionTile; i += kThreads) {
        const int query = i / kAttentionTile;
        const int j = i % kAttentionTile;
        memory.p[i] =
            j < Visible(queries, query, start)
                ? Dot(tile_keys + j * Stride(), memory.q + query * Padded()) *
                      args.scale
                : -Infinity();
      }
    });
    block.Sync();
    for (int i = 0; i < num_queries; i += kThreads / kSumLanes) {
      Weigh(block, queries, start, i, memory);
    }
    block.Sync();
    block.ForEach([&](int thread) {
      for (int i = thread; i < num_queries * Padded(); i += kThreads) {
        AddValues(i / Padded(), i % Padded(),
                  Visible(queries, i / Padded(), start), tile_values, memory);
      }
    });
  }

  // Turns the scores of 8 queries from `first` on into weights: 16 threads per
  // query, a canonical lane each.
  template <typename Block>
  BINARYMOS_DEVICE void Weigh(Block& block, const QueryBlock& queries,
                              int start, int first,
                              const Memory& memory) const {
    const auto query_of = [&](int thread) {
      const int query = first + thread / kSumLanes;
      const bool sees =
          query < NumQueries(queries) && Visible(queries, query, start) > 0;
      return sees ? query : -1;
    };
    typename Block::template PerThread<float> value;
    block.ForEach([&](int thread) {
      const int query = query_of(thread);
      value[thread] = -Infinity();
      if (query < 0) return;
      const float* p = memory.p + query * kAttentionTile + thread % kSumLanes;
      value[thread] = p[0];
      BINARYMOS_UNROLL
      for (int i = kSumLanes; i < kAttentionTile; i += kSumLanes) {
        value[thread] = Larger(value[thread], p[i]);
      }
    });
    BINARYMOS_UNROLL
    for (int mask = kSumLanes / 2; mask > 0; mask /= 2) {
      typename Block::template PerThread<float> other =
          block.ShuffleXor(value, mask);
      block.ForEach([&](int thread) {
        value[thread] = Larger(value[thread], other[thread]);
      });
    }
    block.ForEach([&](int thread) {
      const int query = query_of(thread);
      if (query < 0 || thread % kSumLanes != 0) return;
      float* scalars = memory.scalars + query * kScalars;
      const float max = Larger(scalars[kMax], value[thread]);
      scalars[kCorrection] = Exp(scalars[kMax] - max);
      scalars[kNewMax] = max;
    });
    block.Sync();
    block.ForEach([&](int thread) {
      const int query = query_of(thread);
      value[thread] = 0.0f;
      if (query < 0) return;
      const float max = memory.scalars[query * kScalars + kNewMax];
      float* p = memory.p + query * kAttentionTile + thread % kSumLanes;
      BINARYMOS_UNROLL
      for (int i = 0; i < kAttentionTile; i += kSumLanes) {
        p[i] = Exp(p[i] - max);
        value[thread] += p[i];
      }
    });
    BINARYMOS_UNROLL
    for (int mask = kSumLanes / 2; mask > 0; mask /= 2) {
      typename Block::template PerThread<float> other =
          block.ShuffleXor(value, mask);
      block.ForEach([&](int thread) { value[thread] += other[thread]; });
    }
    block.ForEach([&](int thread) {
      const int query = query_of(thread);
      if (query < 0 || thread % kSumLanes != 0) return;
      float* scalars = memory.scalars + query * kScalars;
      scalars[kMax] = scalars[kNewMax];
      scalars[kSum] = Fma(scalars[kSum], scalars[kCorrection], value[thread]);
    });
  }

  BINARYMOS_DEVICE void AddValues(int query, int d, int visible,
                                  const float* tile_values,
                                  const Memory& memory) const {
    if (visible <= 0 || d >= args.head_dim) return;
    const float* p = memory.p + query * kAttentionTile;
    float& acc = memory.acc[query * Padded() + d];
    float sum = acc * memory.scalars[query * kScalars + kCorrection];
    BINARYMOS_UNROLL_BY_16
    for (int j = 0; j < visible; ++j) {
      sum = Fma(p[j], tile_values[j * Stride() + d], sum);
    }
    acc = sum;
  }

  // Adds the split to those before it.
  template <typename Block>
  BINARYMOS_DEVICE void Merge(Block& block, const QueryBlock& queries,
                              int split, const Memory& memory) const {
    const auto sees = [&](int query) {
      return split < NumSplits(Position(queries, query));
    };
    block.ForEach([&](int thread) {
      for (int i = thread; i < NumQueries(queries) * Padded(); i += kThreads) {
        if (!sees(i / Padded())) continue;
        const float* scalars = memory.scalars + i / Padded() * kScalars;
        if (split == 0) {
          memory.total[i] = memory.acc[i];
          continue;
        }
        const MergeFactors factors =
            FactorsOf(scalars[kTotalMax], scalars[kMax]);
        memory.total[i] =
            Fma(memory.total[i], factors.keep, memory.acc[i] * factors.add);
      }
    });
    block.Sync();
    block.ForEach([&](int thread) {
      for (int i = thread; i < NumQueries(queries); i += kThreads) {
        if (!sees(i)) continue;
        float* scalars = memory.scalars + i * kScalars;
        if (split == 0) {
          scalars[kTotalMax] = scalars[kMax];
          scalars[kTotalSum] = scalars[kSum];
          continue;
        }
        const MergeFactors factors =
            FactorsOf(scalars[kTotalMax], scalars[kMax]);
        scalars[kTotalMax] = factors.max;
        scalars[kTotalSum] =
            Fma(scalars[kTotalSum], factors.keep, scalars[kSum] * factors.add);
      }
    });
    block.Sync();
  }

  template <typename Block>
  BINARYMOS_DEVICE void StoreOutputs(Block& block, const QueryBlock& queries,
                                     int kv_head, const Memory& memory) const {
    block.ForEach([&](int thread) {
      for (int i = thread; i < NumQueries(queries) * Padded(); i += kThreads) {
        const int query = i / Padded();
        const int d = i % Padded();
        if (d >= args.head_dim) continue;
        args.out[OutputOf(queries, kv_head, query) + d] =
            memory.total[i] / memory.scalars[query * kScalars + kTotalSum];
      }
    });
  }

  template <typename Block>
  BINARYMOS_DEVICE void StoreStates(Block& block, const QueryBlock& queries,
                                    int kv_head, int split,
                                    const Memory& memory) const {
    block.ForEach([&](int thread) {
      for (int i = thread; i < NumQueries(queries) * Padded(); i += kThreads) {
        const int query = i / Padded();
        const int d = i % Padded();
        if (split >= NumSplits(Position(queries, query))) continue;
        const int64_t token = queries.first_token + query / args.group();
        float* state =
            args.states + args.StateOf(token, Head(kv_head, query), split);
        const float* scalars = memory.scalars + query * kScalars;
        if (d < args.head_dim) state[2 + d] = memory.acc[i];
        if (d < 2) state[d] = scalars[d == 0 ? kMax : kSum];
      }
    });
  }
};

}  // namespace binarymos::cuda
