// From training checkpoints to model directories.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace binarymos {

struct ConvertProgress {
  int64_t bytes_read = 0;
  int64_t total_bytes = 0;
  std::string tensor;  // the one that was written last
};

struct ConvertOptions {
  std::string source;
  std::string target;
  // What to make:
  //   auto            of a BinaryMoS training checkpoint (config.json has
  //                   num_expert): its packed form
  //   binarymos-init  of a plain LLaMA: signs and, for each of num_experts, the
  //                   scales that training would start from
  //   onebit          the same with one expert and no router
  //   float16         of a plain LLaMA: the same weights in float16
  std::string method = "auto";
  int num_experts = 4;  // of binarymos-init, 1 to 8
  bool strict = false;  // refuse latent weights that are exactly zero
  bool force = false;   // replace a model directory that stands at `target`
  int64_t max_shard_bytes = 4'000'000'000;
  // Called after every tensor; false ends the conversion. May be empty.
  std::function<bool(const ConvertProgress&)> on_progress;
};

struct ZeroCount {
  std::string tensor;  // as the source names it
  int64_t num_zeros = 0;
  int64_t num_elements = 0;
};

struct ConvertReport {
  std::string quant_method;  // of the target: "binarymos", "float16"
  int num_experts = 0;
  int num_tensors = 0;       // written
  int64_t source_bytes = 0;  // of the tensors read
  int64_t target_bytes = 0;  // of all files written
  // Latent weights that had no sign and became +1; only tensors that have some.
  std::vector<ZeroCount> zeros;
  int64_t num_zeros = 0;
  // Other values that are not zero and too small for float16, so became it.
  int64_t num_flushed = 0;
  // Largest anonymous memory of the process, looked at after every tensor.
  int64_t peak_anonymous_bytes = 0;
  bool has_tokenizer = false;  // the server needs one
};

// Reads `source`, a Hugging Face directory with config.json and safetensors
// (one file or shards) in F16, BF16 or F32, and writes `target`: config.json,
// tensors, manifest.json, and tokenizer.model, tokenizer_config.json,
// special_tokens_map.json and generation_config.json where the source has them.
// One tensor is held in memory at a time. `target` appears whole, with every
// byte on the disk, or not at all.
//
// INVALID_ARGUMENT or NOT_FOUND naming file, tensor and what was expected for a
// source that is not right, one with NaN, Inf or values beyond float16 included
// (of latent weights only NaN and Inf, since only their sign is kept);
// UNIMPLEMENTED for an architecture that is not ours; FAILED_PRECONDITION for
// zeros when `strict`; ALREADY_EXISTS for the target; CANCELLED by on_progress;
// RESOURCE_EXHAUSTED if the disk is full, PERMISSION_DENIED or INTERNAL for
// other failures of writing.
absl::StatusOr<ConvertReport> ConvertModel(const ConvertOptions& options);

}  // namespace binarymos
