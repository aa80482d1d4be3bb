// What is in a model directory, without loading it into a backend.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace binarymos {

struct InspectedTensor {
  std::string name;
  std::string dtype;  // "F16"
  std::string shape;  // "[4096, 512]"
  int64_t bytes = 0;
};

// Bytes of the tensors that serve one purpose.
struct InspectedPart {
  std::string name;  // "embeddings", "linear weights", ...
  int64_t num_tensors = 0;
  int64_t bytes = 0;
};

// A plain value.
struct ModelInspection {
  std::string model_dir;
  std::vector<std::string> files;  // names of the safetensors files
  // Facts of the configuration in reading order: ("hidden_size", "4096").
  std::vector<std::pair<std::string, std::string>> config;
  std::vector<InspectedTensor> tensors;  // in model order, layer 2 before 10
  std::vector<InspectedPart> parts;      // parts without tensors are left out
  int64_t num_parameters = 0;            // a sign counts as one
  int64_t total_bytes = 0;               // of all tensors
  // Of the linear layers in the blocks, as stored: bits of weights, scales,
  // gates and biases per element of W.
  double bits_per_weight = 0;
  // The sign (or 16-bit weight) tensors alone.
  double bits_per_weight_without_scales = 0;
  int64_t kv_bytes_per_token = 0;  // f16
  // Of lm_head in 16 bits, and with --lm-head=int8 before padding.
  int64_t head_bytes = 0;
  int64_t int8_head_bytes = 0;
  // Why the model cannot be loaded: a tensor that is missing, superfluous or
  // not as the configuration says. Empty if it can.
  std::string problem;
};

// Reads the configuration and the headers of the tensor files. NOT_FOUND,
// INVALID_ARGUMENT or UNIMPLEMENTED, naming file, key or tensor and what was
// expected, if one of them is missing or not well-formed.
absl::StatusOr<ModelInspection> InspectModel(const std::string& model_dir);

// For people. `with_tensors` lists every tensor, otherwise only the parts.
std::string ToText(const ModelInspection& inspection, bool with_tensors);
// For programs: one JSON object, two spaces of indentation, a final newline.
std::string ToJson(const ModelInspection& inspection, bool with_tensors);

}  // namespace binarymos
