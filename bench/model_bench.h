// A model without scheduler and server: one step of decoding, one of a prompt,
// and the attention of one layer.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/backend/backend_factory.h"

namespace binarymos {

struct ModelBenchOptions {
  std::string shape = "7b";  // tiny, 1b or 7b, random weights
  BackendOptions backend;
  std::vector<int> batches = {1, 8, 64};        // sequences that decode
  std::vector<int> contexts = {128, 2048};      // their lengths
  std::vector<int> prompts = {128, 512, 2048};  // tokens of one sequence
  double seconds = 2;                           // of one row, all rounds
  int repeats = 5;  // rounds, in each of which all rows have their turn
  LinearKind head = LinearKind::kFloat16;  // of lm_head
  std::string kv_cache_dtype = "f16";      // as of KvCacheDType
  bool json = false;
};

// Each prints a table (or JSON) to stdout, a row per combination: the median of
// the rounds' median times of a step with the least and the most of those, 95th
// percentile and least of all times, tokens per second, bytes that the step
// must read and multiply-adds of its linears (or attention) per second, and the
// bytes' part of the bandwidth that a probe finds in the same process before
// and after. On a CPU also how much memory is in huge pages. Rows whose KV
// cache does not fit are left out, and said so. Errors of CreateBackend, of
// loading and of the device.

// Steps of one token per sequence, greedy, all at the same context.
absl::Status RunDecodeBench(const ModelBenchOptions& options);
// Steps of one whole prompt from position 0; the logits of its last token.
absl::Status RunPrefillBench(const ModelBenchOptions& options);
// Attention alone, layer after layer of a cache: decoding and whole prompts.
absl::Status RunAttentionBench(const ModelBenchOptions& options);

}  // namespace binarymos
