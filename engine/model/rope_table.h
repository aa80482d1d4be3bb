// Rotation angles of the position embedding.
#pragma once

#include <vector>

#include "engine/model/llama_config.h"

namespace binarymos {

// cos and sin of position / base^(2 i / head_dim), fixed for the lifetime of
// the model so that a cached key never has to be rotated again. Host memory.
struct RopeAngles {
  std::vector<float> cos;  // [max_model_len, head_dim / 2]
  std::vector<float> sin;  // same
};

// The base after scaling. Dynamic NTK raises it where the model runs longer
// than it was trained for (L = max_model_len > max_position_embeddings):
//   base * (factor * L / max_position_embeddings - (factor - 1))^(d / (d - 2)).
// Hugging Face's code grows the base with each sequence instead, and keeps keys
// rotated by an older one; a token would then depend on how it was computed.
double RopeBase(const LlamaConfig& config, int max_model_len);

// Computed in double and rounded once. Linear scaling divides positions by
// the factor.
RopeAngles ComputeRopeAngles(const LlamaConfig& config, int max_model_len);

}  // namespace binarymos
