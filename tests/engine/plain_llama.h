// LLaMA as the formulas say it: all in double, one sequence, no cache, no
// backend. Reads the model directory by itself.
#pragma once

#include <string>
#include <vector>

#include "engine/api/types.h"

namespace binarymos {

// Logits of every position, [tokens, vocab]. `max_model_len` matters to dynamic
// NTK scaling.
std::vector<double> PlainLlamaLogits(const std::string& model_dir,
                                     const std::vector<TokenId>& tokens,
                                     int max_model_len);

}  // namespace binarymos
