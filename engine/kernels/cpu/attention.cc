#include "engine/kernels/cpu/attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "absl/functional/function_ref.h"
#include "engine/core/check.h"

namespace binarymos::cpu {
namespace {

// Query rows (tokens times heads of a group) that share one pass over K and V.
constexpr int kMaxQueryRows = 32;
// Splits of a query block that are in memory at the same time.
constexpr int kSplitsPerWave = 16;

int TokensPerBlock(int group) { return std::max(1, kMaxQueryRows / group); }
int MaxRows(int group) { return TokensPerBlock(group) * group; }
int NumSplits(int position) { return position / kAttentionSplit + 1; }

// K and V of one tile in f32.
int64_t TileFloats(int head_dim) {
  return int64_t{2} * kAttentionTile * head_dim;
}

// Calls task(slot, i) for i in [0, count); calls that share a slot in
// [0, num_slots) do not overlap in time, so a slot may have memory of its own.
void ForEachTask(ThreadPool& pool, int64_t count, int num_slots,
                 absl::FunctionRef<void(int64_t slot, int64_t i)> task) {
  std::atomic<int64_t> next{0};
  pool.ParallelFor(num_slots, 1, [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      for (;;) {
        const int64_t i = next.fetch_add(1, std::memory_order_relaxed);
        if (i >= count) break;
        task(slot, i);
      }
    }
  });
}

AttentionSplitTask MakeTask(const AttentionCall& call, int sequence,
                            int first_token, int num_tokens, int kv_head) {
  const int group = call.num_heads / call.num_kv_heads;
  const int64_t q_stride = int64_t{call.num_heads} * call.head_dim;
  return {
      .q = call.q + first_token * q_stride +
           int64_t{kv_head} * group * call.head_dim,
      .q_stride = q_stride,
      .positions = call.positions.data() + first_token,
      .num_tokens = num_tokens,
      .group = group,
      .head_dim = call.head_dim,
      .scale = 1.0f / std::sqrt(static_cast<float>(call.head_dim)),
      .keys = call.keys,
      .values = call.values,
      .kv = call.kv,
      .num_kv_heads = call.num_kv_heads,
      .kv_head = kv_head,
      .block_table =
          call.block_tables.data() + call.block_table_starts[sequence],
  };
}

// Merges the states of `split` into those of the splits before it.
void MergeSplit(const CpuContext& context, const AttentionSplitTask& task,
                int split, const float* next, float* total) {
  const int64_t size = AttentionStateSize(task.head_dim);
  for (int t = 0; t < task.num_tokens; ++t) {
    if (split >= NumSplits(task.positions[t])) continue;
    for (int g = 0; g < task.group; ++g) {
      const int64_t row = (int64_t{t} * task.group + g) * size;
      if (split == 0) {
        std::copy_n(next + row, size, total + row);
      } else {
        context.kernels.merge_states(next + row, total + row, task.head_dim);
      }
    }
  }
}

void WriteOut(const CpuContext& context, const AttentionCall& call,
              const AttentionSplitTask& task, const float* total) {
  const int64_t size = AttentionStateSize(task.head_dim);
  float* out = call.out + (task.q - call.q);
  for (int t = 0; t < task.num_tokens; ++t) {
    for (int g = 0; g < task.group; ++g) {
      context.kernels.finish_attention(
          total + (int64_t{t} * task.group + g) * size,
          out + t * task.q_stride + int64_t{g} * task.head_dim, task.head_dim);
    }
  }
}

}  // namespace

void CpuAttention::FindBlocks(const AttentionCall& call) {
  const int step = TokensPerBlock(call.num_heads / call.num_kv_heads);
  blocks_.clear();
  for (size_t s = 0; s + 1 < call.query_starts.size(); ++s) {
    const int end = call.query_starts[s + 1];
    for (int t = call.query_starts[s]; t < end; t += step) {
      const int n = std::min(step, end - t);
      blocks_.push_back({static_cast<int32_t>(s), t, n,
                         NumSplits(call.positions[t + n - 1])});
    }
  }
}

void CpuAttention::RunWhole(const CpuContext& context,
                            const AttentionCall& call, bool parallel) {
  const int num_slots = parallel ? context.pool.num_threads() : 1;
  const int64_t tile_floats = TileFloats(call.head_dim);
  const int64_t state_floats = MaxRows(call.num_heads / call.num_kv_heads) *
                               AttentionStateSize(call.head_dim);
  const int64_t slot_floats = tile_floats + 2 * state_floats;
  scratch_.resize(std::max<size_t>(scratch_.size(), num_slots * slot_floats));
  const auto count = static_cast<int64_t>(blocks_.size()) * call.num_kv_heads;
  ForEachTask(context.pool, count, num_slots, [&](int64_t slot, int64_t i) {
    // The longest blocks of a sequence come last; start with those.
    const QueryBlock& block =
        blocks_[blocks_.size() - 1 - i / call.num_kv_heads];
    AttentionSplitTask task =
        MakeTask(call, block.sequence, block.first_token, block.num_tokens,
                 static_cast<int>(i % call.num_kv_heads));
    task.scratch = scratch_.data() + slot * slot_floats;
    float* total = task.scratch + tile_floats;
    float* next = total + state_floats;
    for (task.split = 0; task.split < block.num_splits; ++task.split) {
      task.states = task.split == 0 ? total : next;
      context.kernels.attend_split(task);
      if (task.split == 0) continue;
      MergeSplit(context, task, task.split, next, total);
    }
    WriteOut(context, call, task, total);
  });
}

void CpuAttention::RunSplit(const CpuContext& context,
                            const AttentionCall& call) {
  const int num_slots = context.pool.num_threads();
  const int64_t tile_floats = TileFloats(call.head_dim);
  const int64_t state_floats = MaxRows(call.num_heads / call.num_kv_heads) *
                               AttentionStateSize(call.head_dim);
  const auto heads = static_cast<int64_t>(blocks_.size()) * call.num_kv_heads;
  const size_t size =
      num_slots * tile_floats + heads * (kSplitsPerWave + 1) * state_floats;
  scratch_.resize(std::max(scratch_.size(), size));
  float* totals = scratch_.data() + num_slots * tile_floats;
  float* wave_states = totals + heads * state_floats;
  const auto task_of = [&](int64_t i) {
    const QueryBlock& block = blocks_[i / call.num_kv_heads];
    return MakeTask(call, block.sequence, block.first_token, block.num_tokens,
                    static_cast<int>(i % call.num_kv_heads));
  };
  const auto state_of = [&](int64_t i, int64_t split) {
    return wave_states +
           (i * kSplitsPerWave + split % kSplitsPerWave) * state_floats;
  };
  const int num_splits =
      std::max_element(blocks_.begin(), blocks_.end(),
                       [](const QueryBlock& a, const QueryBlock& b) {
                         return a.num_splits < b.num_splits;
                       })
          ->num_splits;
  for (int first = 0; first < num_splits; first += kSplitsPerWave) {
    const int end = std::min(first + kSplitsPerWave, num_splits);
    ForEachTask(context.pool, heads * (end - first), num_slots,
                [&](int64_t slot, int64_t n) {
                  const int64_t i = n / (end - first);
                  const auto split =
                      static_cast<int>(first + n % (end - first));
                  if (split >= blocks_[i / call.num_kv_heads].num_splits)
                    return;
                  AttentionSplitTask task = task_of(i);
                  task.split = split;
                  task.scratch = scratch_.data() + slot * tile_floats;
                  task.states = state_of(i, split);
                  context.kernels.attend_split(task);
                });
    ForEachTask(context.pool, heads, num_slots, [&](int64_t, int64_t i) {
      const AttentionSplitTask task = task_of(i);
      const int last = std::min(
          end, static_cast<int>(blocks_[i / call.num_kv_heads].num_splits));
      for (int split = first; split < last; ++split) {
        MergeSplit(context, task, split, state_of(i, split),
                   totals + i * state_floats);
      }
    });
  }
  for (int64_t i = 0; i < heads; ++i) {
    WriteOut(context, call, task_of(i), totals + i * state_floats);
  }
}

void CpuAttention::Run(const CpuContext& context, const AttentionCall& call) {
  BINARYMOS_CHECK_EQ(call.num_heads % call.num_kv_heads, 0);
  FindBlocks(call);
  if (blocks_.empty()) return;
  int64_t work = 0;
  bool long_context = false;
  for (const QueryBlock& block : blocks_) {
    const int64_t last =
        call.positions[block.first_token + block.num_tokens - 1];
    work += block.num_tokens * (last + 1);
    long_context |= block.num_splits > 1;
  }
  work *= int64_t{call.num_heads} * (call.head_dim + 15) / 8;
  const auto tasks = static_cast<int64_t>(blocks_.size()) * call.num_kv_heads;
  const int threads = context.pool.num_threads();
  if (threads > 1 && long_context && tasks < int64_t{2} * threads) {
    RunSplit(context, call);
  } else {
    RunWhole(context, call, threads > 1 && work > kInlineWork);
  }
}

}  // namespace binarymos::cpu
