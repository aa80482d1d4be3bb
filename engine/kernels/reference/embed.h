#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/core/tensor.h"

namespace binarymos::reference {

// table[tokens[t]]. table: [vocab, hidden] f16; result: [tokens, hidden].
std::vector<double> Embed(const ConstTensorView& table,
                          std::span<const int32_t> tokens);

}  // namespace binarymos::reference
