// Causal attention of a block of queries over one split of the KV cache.
//
//   score[j] = (q · k[j]) * scale
//   per tile of 64 positions: m' = max(m, max score), c = exp(m - m'),
//   p[j] = exp(score[j] - m'), sum = sum * c + Σ p, acc = acc * c + Σ p[j] v[j]
//
// Tiles and splits lie at absolute positions, scores after the query's own
// position count as -inf, and Σ p[j] v[j] runs over ascending j: a query's
// arithmetic is the same whatever other queries are in the block. The block
// shares one conversion of each tile to f32; a single query converts as it
// reads. Included only where a CpuKernels table is built.
#pragma once

#include <cstdint>

#include "engine/kernels/cpu/canonical_math.h"
#include "engine/kernels/cpu/cpu_kernels.h"
#include "engine/kernels/cpu/float16_linear_kernel.h"

namespace binarymos::cpu {
inline namespace BINARYMOS_CPU_ARCH {

inline constexpr int kTilePages = kAttentionTile / kKvPage;
inline constexpr int kTileVectors = kAttentionTile / kLanes;

// One tile of one KV head: pages of [kKvPage, head_dim], T = float or f16.
template <typename T>
struct KvTile {
  const T* keys[kTilePages];
  const T* values[kTilePages];
};

inline float Infinity() { return __builtin_inff(); }
inline float Larger(float a, float b) { return a > b ? a : b; }

// 16 elements from p[k]; only the last vector of a head can be partial, and it
// is handled alone.
template <int kVectors, typename T>
inline Lanes16 LoadOfHead(const T* p, int64_t k, int64_t head_dim) {
  if constexpr (kVectors > 1) return Load(p + k);
  return LoadAt(p, k, head_dim);
}

// acc = acc * correction + Σ p[j] * values[j], for kVectors * 16 of the head's
// dimensions from d on.
template <int kVectors, typename T>
inline void AddValues(const KvTile<T>& tile, const float* p, int num_positions,
                      int64_t d, int64_t head_dim, float correction,
                      float* acc) {
  Lanes16 sums[kVectors];
  for (int i = 0; i < kVectors; ++i) {
    sums[i] = Mul(LoadOfHead<kVectors>(acc, d + i * kLanes, head_dim),
                  Set1(correction));
  }
  for (int j = 0; j < num_positions; ++j) {
    const T* value = tile.values[j / kKvPage] + (j % kKvPage) * head_dim;
    const Lanes16 weight = Set1(p[j]);
    for (int i = 0; i < kVectors; ++i) {
      sums[i] =
          Fma(weight, LoadOfHead<kVectors>(value, d + i * kLanes, head_dim),
              sums[i]);
    }
  }
  for (int i = 0; i < kVectors; ++i) {
    StoreAt(sums[i], acc, d + i * kLanes, head_dim);
  }
}

// Writes the scores of a tile; positions from `num_positions` on get -inf.
template <typename T>
inline void ScoreTile(const KvTile<T>& tile, const float* q, float scale,
                      int num_positions, int64_t head_dim,
                      float scores[kAttentionTile]) {
  static_assert(kKvPage % kDotBlock == 0);
  int j = 0;
  for (; j < num_positions; j += kDotBlock) {
    const T* keys = tile.keys[j / kKvPage] + (j % kKvPage) * head_dim;
    DotBlock(keys, head_dim, q, head_dim, scores + j);
  }
  for (int i = 0; i < num_positions; ++i) scores[i] *= scale;
  for (int i = num_positions; i < kAttentionTile; ++i) {
    scores[i] = -Infinity();
  }
}

// Adds one tile to `state`, see AttentionStateSize.
template <typename T>
inline void AddTile(const KvTile<T>& tile, const float* q, float scale,
                    int num_positions, int64_t head_dim, float* state) {
  float p[kAttentionTile];
  ScoreTile(tile, q, scale, num_positions, head_dim, p);
  Lanes16 largest = Load(p);
  for (int i = 1; i < kTileVectors; ++i) {
    largest = Max(largest, Load(p + i * kLanes));
  }
  const float max = Larger(state[0], ReduceMax(largest));
  const float correction = Exp(state[0] - max);
  Lanes16 sum = Zero();
  for (int i = 0; i < kTileVectors; ++i) {
    const Lanes16 weights = Exp(Sub(Load(p + i * kLanes), Set1(max)));
    Store(weights, p + i * kLanes);
    sum = Add(sum, weights);
  }
  state[0] = max;
  state[1] = Fma(state[1], correction, ReduceAdd(sum));
  float* acc = state + 2;
  int64_t d = 0;
  for (; d + 4 * kLanes <= head_dim; d += 4 * kLanes) {
    AddValues<4>(tile, p, num_positions, d, head_dim, correction, acc);
  }
  for (; d < head_dim; d += kLanes) {
    AddValues<1>(tile, p, num_positions, d, head_dim, correction, acc);
  }
}

// Finds the pages of the tile that starts at position `start`.
template <typename T>
inline KvTile<T> FindPages(const AttentionSplitTask& task, int start,
                           int num_positions) {
  KvTile<T> tile;
  for (int page = 0; page < kTilePages; ++page) {
    // Pages past the end are not read; they repeat the last one.
    const int last = (num_positions - 1) / kKvPage;
    const int64_t block =
        task.block_table[start / kKvPage + (page < last ? page : last)];
    const int64_t offset =
        (block * task.num_kv_heads + task.kv_head) * kKvPage * task.head_dim;
    tile.keys[page] = static_cast<const T*>(task.keys) + offset;
    tile.values[page] = static_cast<const T*>(task.values) + offset;
  }
  return tile;
}

// Converts the pages that hold `num_positions` positions to f32.
inline KvTile<float> Convert(const KvTile<uint16_t>& tile, int num_positions,
                             int64_t head_dim, float* scratch) {
  KvTile<float> converted;
  const int64_t page_size = kKvPage * head_dim;
  for (int page = 0; page < kTilePages; ++page) {
    float* keys = scratch + page * page_size;
    float* values = keys + kTilePages * page_size;
    converted.keys[page] = keys;
    converted.values[page] = values;
    if (page * kKvPage >= num_positions) continue;
    for (int64_t k = 0; k < page_size; k += kLanes) {
      Store(Load(tile.keys[page] + k), keys + k);
      Store(Load(tile.values[page] + k), values + k);
    }
  }
  return converted;
}

// Adds the tile at `start` to every query row that sees some of it.
template <typename T>
inline void AddTileToBlock(const AttentionSplitTask& task, int start,
                           const KvTile<T>& tile) {
  const int64_t state_size = AttentionStateSize(task.head_dim);
  for (int t = 0; t < task.num_tokens; ++t) {
    const int visible = task.positions[t] + 1 - start;
    if (visible <= 0) continue;
    for (int g = 0; g < task.group; ++g) {
      AddTile(tile, task.q + t * task.q_stride + g * task.head_dim, task.scale,
              visible < kAttentionTile ? visible : kAttentionTile,
              task.head_dim, task.states + (t * task.group + g) * state_size);
    }
  }
}

inline void ClearStates(const AttentionSplitTask& task) {
  const int64_t state_size = AttentionStateSize(task.head_dim);
  const int start = task.split * kAttentionSplit;
  for (int t = 0; t < task.num_tokens; ++t) {
    if (task.positions[t] < start) continue;
    for (int g = 0; g < task.group; ++g) {
      float* state = task.states + (t * task.group + g) * state_size;
      state[0] = -Infinity();
      for (int64_t i = 1; i < state_size; ++i) state[i] = 0.0f;
    }
  }
}

inline void AttendSplit(const AttentionSplitTask& task) {
  ClearStates(task);
  const bool share = task.num_tokens * task.group > 1;
  const int end = task.positions[task.num_tokens - 1] + 1;
  for (int i = 0; i < kAttentionSplit / kAttentionTile; ++i) {
    const int start = task.split * kAttentionSplit + i * kAttentionTile;
    if (start >= end) return;
    const int n = end - start < kAttentionTile ? end - start : kAttentionTile;
    if (!task.kv_f16) {
      AddTileToBlock(task, start, FindPages<float>(task, start, n));
      continue;
    }
    const KvTile<uint16_t> tile = FindPages<uint16_t>(task, start, n);
    if (share) {
      AddTileToBlock(task, start,
                     Convert(tile, n, task.head_dim, task.scratch));
    } else {
      AddTileToBlock(task, start, tile);
    }
  }
}

inline void MergeStates(const float* next, float* total, int64_t head_dim) {
  const float max = Larger(total[0], next[0]);
  const float keep = Exp(total[0] - max);
  const float add = Exp(next[0] - max);
  total[0] = max;
  total[1] = Fma(total[1], keep, next[1] * add);
  for (int64_t d = 0; d < head_dim; d += kLanes) {
    const Lanes16 scaled = Mul(LoadAt(next + 2, d, head_dim), Set1(add));
    StoreAt(Fma(LoadAt(total + 2, d, head_dim), Set1(keep), scaled), total + 2,
            d, head_dim);
  }
}

inline void FinishAttention(const float* state, float* out, int64_t head_dim) {
  for (int64_t d = 0; d < head_dim; d += kLanes) {
    StoreAt(Div(LoadAt(state + 2, d, head_dim), Set1(state[1])), out, d,
            head_dim);
  }
}

}  // namespace BINARYMOS_CPU_ARCH
}  // namespace binarymos::cpu
