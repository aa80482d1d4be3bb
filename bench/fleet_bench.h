// What one accelerator would serve, before there is one: the real serving loop
// on a virtual clock, with steps that cost what a model says.
#pragma once

#include "engine/api/batch_plan.h"
#include "engine/api/types.h"

namespace binarymos {

// What a step costs. The defaults are predictions for a BinaryMoS model of 7B
// on an H200 (docs/benchmarks/cuda.md); nothing of them was measured.
struct StepCostModel {
  double fixed_us = 2000;         // launches, and weights once through memory
  double token_us = 75;           // linear layers
  double sampled_row_us = 9;      // output layer and sampling
  double context_token_us = 0.2;  // keys and values read, per row and position

  Duration Of(const BatchPlan& plan) const;
};

struct FleetBenchOptions {
  StepCostModel cost;
  // As `serve` has them; 125 GB of keys and values in 16 bit.
  CacheConfig cache{.num_blocks = 14'900,
                    .max_num_seqs = 256,
                    .max_model_len = 4096,
                    .max_num_batched_tokens = 2048};
  int num_requests = 2000;
  double rate = 10;         // requests per second, Poisson
  int prompt_tokens = 512;  // median; log-normal, sigma 0.8
  int output_tokens = 200;  // median; log-normal, sigma 0.6
  int common_tokens = 0;    // of every prompt, in front
  // A request is good that has its first token and, on average, the others in
  // time.
  double first_token_slo_seconds = 1;
  double token_slo_seconds = 0.05;
};

struct FleetBenchRow {
  double rate = 0;
  double tokens_per_second = 0;  // generated, arrival of the first to the end
  double requests_per_second = 0;
  double good_requests_per_second = 0;
  double ttft_p50 = 0;  // seconds
  double ttft_p99 = 0;
  double itl_p50 = 0;
  double itl_p99 = 0;
  double tokens_per_step = 0;
  int num_refused = 0;
  long long num_preemptions = 0;
};

// The same for the same options, on every machine with the same standard
// library.
FleetBenchRow BenchFleet(const FleetBenchOptions& options);

}  // namespace binarymos
