#pragma once

#include <span>
#include <vector>

namespace binarymos::reference {

// exp(x) / Σ exp(x).
std::vector<double> Softmax(std::span<const double> x);

}  // namespace binarymos::reference
