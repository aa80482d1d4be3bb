// What the scheduler counts. Plain values: server/metrics.cc exports them.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "engine/api/types.h"

namespace binarymos {

// Distribution of the number of tokens computed per step. Bucket i counts
// steps of at most kBounds[i] tokens; the last bucket is unbounded.
struct StepTokensHistogram {
  static constexpr std::array<int, 13> kBounds = {
      1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
  std::array<int64_t, kBounds.size() + 1> counts{};
  int64_t sum = 0;
};

// A snapshot after a step. Counters ascend for the lifetime of the loop.
struct SchedulerStats {
  // Now.
  int num_running = 0;  // sequences that hold a slot
  int num_waiting = 0;  // sequences queued or preempted
  int num_blocks = 0;
  int num_free_blocks = 0;

  // Since the start.
  int64_t num_steps = 0;
  int64_t num_prompt_tokens = 0;  // computed, recomputed ones included
  int64_t num_generated_tokens = 0;
  int64_t num_preemptions = 0;
  int64_t num_not_finite = 0;          // samples ended by NaN or Inf logits
  int64_t num_cache_query_tokens = 0;  // prefix cache
  int64_t num_cache_hit_tokens = 0;
  StepTokensHistogram step_tokens;
  Duration schedule_time{0};  // spent in Schedule and Commit
  Duration compute_time{0};   // spent in steps
  Duration longest_step{0};

  // Newest sample of StepStats::mean_gate, [num_layers * num_experts].
  std::vector<float> mean_gate;

  double kv_usage() const {
    return num_blocks == 0
               ? 0.0
               : 1.0 - static_cast<double>(num_free_blocks) / num_blocks;
  }
};

}  // namespace binarymos
