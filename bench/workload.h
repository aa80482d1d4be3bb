// What a benchmark asks of an engine or a server, and what came back.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/api/types.h"

namespace binarymos {

// `streams` clients at the same time, each one request: `prompt_tokens` random
// token ids, of which all have the first `common_tokens` in common, exactly
// `output_tokens` generated (EOS ignored), greedy. Workloads of different seeds
// have no prompt in common, so that one server's prefix cache does not answer
// the second from the first.
struct Workload {
  int streams = 1;
  int prompt_tokens = 16;
  int common_tokens = 0;
  int output_tokens = 64;
  uint32_t seed = 0;
};

// Prompt of client `stream`: ids in [3, vocab_size), the same in every run of
// one seed.
std::vector<TokenId> PromptTokens(const Workload& workload, int stream,
                                  int vocab_size);

// One run of a workload, client's view.
struct RunResult {
  int64_t num_tokens = 0;            // generated, all streams
  int64_t num_prompt_tokens = 0;     // computed; 0: not known
  double wall_seconds = 0;           // first request sent to last stream ended
  double process_seconds = 0;        // CPU time of the process with the engine
  std::vector<double> ttft_seconds;  // per stream
  std::vector<double> itl_seconds;   // between consecutive arrivals

  double tokens_per_second() const { return num_tokens / wall_seconds; }
  double process_seconds_per_token() const {
    return process_seconds / num_tokens;
  }
};

// CPU time that this process has used, in seconds: user and system, all
// threads.
double ProcessCpuSeconds();

// Value at `quantile` in [0, 1] of `values`; 0 if there are none.
double Quantile(std::vector<double> values, double quantile);

// "AMD EPYC, 2 threads of 2, commit abc1234": belongs beside every figure.
std::string MachineDescription();

}  // namespace binarymos
