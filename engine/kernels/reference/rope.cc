#include "engine/kernels/reference/rope.h"

#include "engine/kernels/reference/element.h"

namespace binarymos::reference {

std::vector<double> Rope(const ConstTensorView& x, int head_dim,
                         std::span<const int32_t> positions,
                         const ConstTensorView& cos,
                         const ConstTensorView& sin) {
  const int64_t width = x.shape[1];
  const int64_t half = head_dim / 2;
  std::vector<double> out(x.shape.num_elements());
  for (size_t t = 0; t < positions.size(); ++t) {
    for (int64_t head = 0; head < width; head += head_dim) {
      for (int64_t d = 0; d < half; ++d) {
        const int64_t first = static_cast<int64_t>(t) * width + head + d;
        const int64_t second = first + half;
        const double c = Element(cos, positions[t] * half + d);
        const double s = Element(sin, positions[t] * half + d);
        out[first] = Element(x, first) * c - Element(x, second) * s;
        out[second] = Element(x, second) * c + Element(x, first) * s;
      }
    }
  }
  return out;
}

}  // namespace binarymos::reference
