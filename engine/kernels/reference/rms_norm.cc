#include "engine/kernels/reference/rms_norm.h"

#include <cmath>

#include "engine/kernels/reference/element.h"

namespace binarymos::reference {

std::vector<double> RmsNorm(const ConstTensorView& x,
                            const ConstTensorView& weight, double eps) {
  const int64_t rows = x.shape[0];
  const int64_t hidden = x.shape[1];
  std::vector<double> out;
  for (int64_t r = 0; r < rows; ++r) {
    double sum = 0;
    for (int64_t i = 0; i < hidden; ++i) {
      const double value = Element(x, r * hidden + i);
      sum += value * value;
    }
    const double root = std::sqrt(sum / static_cast<double>(hidden) + eps);
    for (int64_t i = 0; i < hidden; ++i) {
      out.push_back(Element(x, r * hidden + i) / root * Element(weight, i));
    }
  }
  return out;
}

}  // namespace binarymos::reference
