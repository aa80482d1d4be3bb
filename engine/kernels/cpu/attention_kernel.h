// Causal attention of a block of queries over one split of the KV cache.
//
//   score[j] = (q · k[j]) * scale
//   per tile of 64 positions: m' = max(m, max score), c = exp(m - m'),
//   p[j] = exp(score[j] - m'), sum = sum * c + Σ p, acc = acc * c + Σ p[j] v[j]
//
// Tiles and splits lie at absolute positions, scores after the query's own
// position count as -inf, and Σ p[j] v[j] runs over ascending j: a query's
// arithmetic is the same whatever other queries are in the block. The block
// shares one conversion of each tile to f32, and four queries what is read of
// it; a single query converts as it reads. Included only where a CpuKernels
// table is built.
#pragma once

#include <cstdint>

#include "engine/kernels/cpu/canonical_math.h"
#include "engine/kernels/cpu/cpu_kernels.h"
#include "engine/kernels/cpu/float16_linear_kernel.h"

namespace binarymos::cpu {
inline namespace BINARYMOS_CPU_ARCH {

inline constexpr int kTilePages = kAttentionTile / kKvPage;
inline constexpr int kTileVectors = kAttentionTile / kLanes;

// One tile of one KV head: pages of [kKvPage, head_dim], T = float, f16 or
// e4m3.
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

// Turns the scores of a tile into weights and enters their largest and their
// sum in `state`, see AttentionStateSize. Returns what its values are to be
// multiplied with.
inline float AddWeights(float p[kAttentionTile], float* state) {
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
  return correction;
}

// Adds one tile to `state`.
template <typename T>
inline void AddTile(const KvTile<T>& tile, const float* q, float scale,
                    int num_positions, int64_t head_dim, float* state) {
  float p[kAttentionTile];
  ScoreTile(tile, q, scale, num_positions, head_dim, p);
  const float correction = AddWeights(p, state);
  float* acc = state + 2;
  int64_t d = 0;
  for (; d + 4 * kLanes <= head_dim; d += 4 * kLanes) {
    AddValues<4>(tile, p, num_positions, d, head_dim, correction, acc);
  }
  for (; d < head_dim; d += kLanes) {
    AddValues<1>(tile, p, num_positions, d, head_dim, correction, acc);
  }
}

// Four query rows that share what is read of a tile.
struct QueryFour {
  const float* q[kDotBlock];
  int visible[kDotBlock];  // positions of the tile, at least one
  float* state[kDotBlock];
};

// scores[i][j] = (q[i] · key j) * scale, j in [0, num_positions)
inline void ScoreTileOfFour(const KvTile<float>& tile, const QueryFour& rows,
                            float scale, int num_positions, int64_t head_dim,
                            float scores[kDotBlock][kAttentionTile]) {
  const float* q0 = rows.q[0];
  const float* q1 = rows.q[1];
  const float* q2 = rows.q[2];
  const float* q3 = rows.q[3];
  for (int j = 0; j < num_positions; ++j) {
    const float* key = tile.keys[j / kKvPage] + (j % kKvPage) * head_dim;
    Lanes16 sums[kDotBlock] = {Zero(), Zero(), Zero(), Zero()};
    int64_t d = 0;
    for (; d + kLanes <= head_dim; d += kLanes) {
      const Lanes16 shared = Load(key + d);
      sums[0] = Fma(Load(q0 + d), shared, sums[0]);
      sums[1] = Fma(Load(q1 + d), shared, sums[1]);
      sums[2] = Fma(Load(q2 + d), shared, sums[2]);
      sums[3] = Fma(Load(q3 + d), shared, sums[3]);
    }
    if (d < head_dim) {
      const Lanes16 shared = LoadPartial(key + d, head_dim - d);
      for (int i = 0; i < kDotBlock; ++i) {
        sums[i] =
            Fma(LoadPartial(rows.q[i] + d, head_dim - d), shared, sums[i]);
      }
    }
    float four[kDotBlock];
    ReduceAdd4(sums, four);
    for (int i = 0; i < kDotBlock; ++i) scores[i][j] = four[i] * scale;
  }
}

// The values of 16 dimensions from d on: of `least` positions for all four,
// then of what each sees beyond them. kWhole: all 16 are in the head.
template <bool kWhole>
inline void AddValuesToFour(const KvTile<float>& tile, const QueryFour& rows,
                            const float p[kDotBlock][kAttentionTile],
                            const float correction[kDotBlock], int least,
                            int64_t d, int64_t head_dim) {
  constexpr int kVectors = kWhole ? 2 : 1;  // as of LoadOfHead
  Lanes16 sums[kDotBlock];
  for (int i = 0; i < kDotBlock; ++i) {
    sums[i] = Mul(LoadOfHead<kVectors>(rows.state[i] + 2, d, head_dim),
                  Set1(correction[i]));
  }
  for (int j = 0; j < least; ++j) {
    const Lanes16 value = LoadOfHead<kVectors>(
        tile.values[j / kKvPage] + (j % kKvPage) * head_dim, d, head_dim);
    for (int i = 0; i < kDotBlock; ++i) {
      sums[i] = Fma(Set1(p[i][j]), value, sums[i]);
    }
  }
  for (int i = 0; i < kDotBlock; ++i) {
    Lanes16 sum = sums[i];
    for (int j = least; j < rows.visible[i]; ++j) {
      const Lanes16 value = LoadOfHead<kVectors>(
          tile.values[j / kKvPage] + (j % kKvPage) * head_dim, d, head_dim);
      sum = Fma(Set1(p[i][j]), value, sum);
    }
    StoreAt(sum, rows.state[i] + 2, d, head_dim);
  }
}

// As AddTile for each of the four, with the same bits: a row's sums run over
// the same elements in the same order.
inline void AddTileToFour(const KvTile<float>& tile, const QueryFour& rows,
                          float scale, int64_t head_dim) {
  int least = rows.visible[0];
  int most = rows.visible[0];
  for (const int visible : rows.visible) {
    least = visible < least ? visible : least;
    most = visible > most ? visible : most;
  }
  float p[kDotBlock][kAttentionTile];
  ScoreTileOfFour(tile, rows, scale, most, head_dim, p);
  float correction[kDotBlock];
  for (int i = 0; i < kDotBlock; ++i) {
    for (int j = rows.visible[i]; j < kAttentionTile; ++j) {
      p[i][j] = -Infinity();
    }
    correction[i] = AddWeights(p[i], rows.state[i]);
  }
  int64_t d = 0;
  for (; d + kLanes <= head_dim; d += kLanes) {
    AddValuesToFour<true>(tile, rows, p, correction, least, d, head_dim);
  }
  if (d < head_dim) {
    AddValuesToFour<false>(tile, rows, p, correction, least, d, head_dim);
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

// 16 codes of e4m3, by way of f16, whose bias is larger by 8.
inline Lanes16 Load(const uint8_t* codes) {
  uint16_t halves[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    const int magnitude = codes[i] & 0x7f;
    const int half = magnitude == 0x7f ? 0x7fff : magnitude << 7;
    halves[i] = static_cast<uint16_t>((codes[i] & 0x80) << 8 | half);
  }
  return Mul(Load(halves), Set1(256.0f));
}

// Converts the pages that hold `num_positions` positions to f32.
template <typename T>
inline KvTile<float> Convert(const KvTile<T>& tile, int num_positions,
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

// The query rows of a task, (token, head of the group), token-major, and how
// many positions of the tile at `start` each sees.
struct QueryRows {
  const AttentionSplitTask& task;
  int start;

  int count() const { return task.num_tokens * task.group; }
  const float* q(int row) const {
    return task.q + row / task.group * task.q_stride +
           int64_t{row % task.group} * task.head_dim;
  }
  int visible(int row) const {
    const int left = task.positions[row / task.group] + 1 - start;
    return left < kAttentionTile ? left : kAttentionTile;
  }
  float* state(int row) const {
    return task.states + row * AttentionStateSize(task.head_dim);
  }
};

// Adds the tile at `start` to every query row that sees some of it.
template <typename T>
inline void AddTileToBlock(const AttentionSplitTask& task, int start,
                           const KvTile<T>& tile) {
  const QueryRows rows{task, start};
  int row = 0;
  while (row < rows.count() && rows.visible(row) <= 0) ++row;
  if constexpr (sizeof(T) == sizeof(float)) {
    for (; row + kDotBlock <= rows.count(); row += kDotBlock) {
      QueryFour four;
      for (int i = 0; i < kDotBlock; ++i) {
        four.q[i] = rows.q(row + i);
        four.visible[i] = rows.visible(row + i);
        four.state[i] = rows.state(row + i);
      }
      AddTileToFour(tile, four, task.scale, task.head_dim);
    }
  }
  for (; row < rows.count(); ++row) {
    AddTile(tile, rows.q(row), task.scale, rows.visible(row), task.head_dim,
            rows.state(row));
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
    if (task.kv == KvType::kF32) {
      AddTileToBlock(task, start, FindPages<float>(task, start, n));
      continue;
    }
    if (task.kv == KvType::kE4m3) {
      AddTileToBlock(task, start,
                     Convert(FindPages<uint8_t>(task, start, n), n,
                             task.head_dim, task.scratch));
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
