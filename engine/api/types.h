// Plain identifiers and time types that every layer shares.
#pragma once

#include <chrono>
#include <cstdint>

namespace binarymos {

// Index into the model's vocabulary.
using TokenId = int32_t;
inline constexpr TokenId kNoToken = -1;

// Index of a KV cache block in the pool, in [0, CacheConfig::num_blocks).
using BlockId = int32_t;

// Index of a sequence's place in the runner (sampling parameters and penalty
// history live there), in [0, CacheConfig::max_num_seqs).
using SlotId = int32_t;

// Number of a step, ascending from 0 for the lifetime of a serving loop.
using StepId = int64_t;
inline constexpr StepId kNoStep = -1;

// Number of a request, unique for the lifetime of the process.
using RequestId = uint64_t;

// All time inside the process is monotonic; wall-clock time appears in logs
// only. The scheduler receives the time as an argument and never asks for it.
using MonotonicTime = std::chrono::steady_clock::time_point;
using Duration = std::chrono::nanoseconds;

// Positions held by one KV cache block.
inline constexpr int kBlockSize = 16;

// What Engine::Load sized the KV pool to; the scheduler is built from it.
struct CacheConfig {
  int num_blocks = 0;
  int block_size = kBlockSize;
  int64_t bytes = 0;      // of all blocks of all layers
  int max_num_seqs = 0;   // slots that the runner holds
  int max_model_len = 0;  // positions (prompt + output) of one sequence
  int max_num_batched_tokens = 0;  // token budget of one step
};

}  // namespace binarymos
