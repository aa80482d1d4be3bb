// Which tensor of a converted model comes from which of the source.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/checkpoint.h"
#include "engine/model/llama_config.h"
#include "engine/safetensors_writer.h"

namespace binarymos {

// What is done with the linear layers of the decoder blocks.
enum class LinearConversion {
  kPackTrained,  // latent weights, scales and routers of a training checkpoint
  kBinarize,     // a float layer: signs and untrained scales
  kCopy,         // a float layer: in float16
};

// The config.json to be read and the one to be written.
struct ConfigConversion {
  LinearConversion linears = LinearConversion::kCopy;
  nlohmann::json json;  // of the target
  LlamaConfig config;   // what `json` says
};

// Reads `<source>/config.json`. `method` and `num_experts` as in
// ConvertOptions, with its errors.
absl::StatusOr<ConfigConversion> ConvertConfig(const std::string& source,
                                               const std::string& method,
                                               int num_experts);

// One tensor to write.
struct TensorJob {
  enum class Kind {
    kValues,    // of `source`, in F16
    kSigns,     // of `source`, packed
    kInScale,   // the same for every expert, from the rank-1 SVD of |source|
    kOutScale,  // likewise
    kRouter,    // random: experts that are all the same need no other
  };
  Kind kind = Kind::kValues;
  std::string source;
  TensorSpec target;
};

// Every tensor of the target, in the order of the file. INVALID_ARGUMENT naming
// file, tensor and what was expected if one of the source is missing,
// superfluous or of another type or shape.
absl::StatusOr<std::vector<TensorJob>> PlanTensors(
    const Checkpoint& checkpoint, const ConfigConversion& conversion);

}  // namespace binarymos
