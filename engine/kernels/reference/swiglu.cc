#include "engine/kernels/reference/swiglu.h"

#include <cmath>

#include "engine/kernels/reference/element.h"

namespace binarymos::reference {

std::vector<double> SwiGlu(const ConstTensorView& gate,
                           const ConstTensorView& up) {
  std::vector<double> out;
  for (int64_t i = 0; i < gate.shape.num_elements(); ++i) {
    const double g = Element(gate, i);
    out.push_back(g / (1.0 + std::exp(-g)) * Element(up, i));
  }
  return out;
}

}  // namespace binarymos::reference
