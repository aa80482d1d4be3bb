#include "engine/kernels/reference/softmax.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace binarymos::reference {

std::vector<double> Softmax(std::span<const double> x) {
  double max = -std::numeric_limits<double>::infinity();
  for (const double value : x) max = std::max(max, value);
  std::vector<double> out;
  double sum = 0;
  for (const double value : x) {
    out.push_back(std::exp(value - max));
    sum += out.back();
  }
  for (double& value : out) value /= sum;
  return out;
}

}  // namespace binarymos::reference
