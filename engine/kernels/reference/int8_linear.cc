#include "engine/kernels/reference/int8_linear.h"

#include <algorithm>
#include <cmath>

#include "engine/kernels/reference/element.h"

namespace binarymos::reference {

std::vector<double> Int8Linear(const ConstTensorView& x,
                               const ConstTensorView& weight) {
  const int64_t out_features = weight.shape[0];
  const int64_t in_features = weight.shape[1];
  std::vector<double> rounded(out_features * in_features);
  for (int64_t o = 0; o < out_features; ++o) {
    double largest = 0;
    for (int64_t i = 0; i < in_features; ++i) {
      largest =
          std::max(largest, std::abs(Element(weight, o * in_features + i)));
    }
    const auto scale = static_cast<float>(largest / 127);
    for (int64_t i = 0; i < in_features && scale > 0; ++i) {
      const int64_t k = o * in_features + i;
      // The quotient is rounded to f32 first: which integer is nearest is then
      // the same for everybody.
      const auto quotient = static_cast<float>(Element(weight, k) / scale);
      rounded[k] = std::nearbyint(quotient) * scale;
    }
  }
  std::vector<double> out;
  for (int64_t r = 0; r < x.shape[0]; ++r) {
    for (int64_t o = 0; o < out_features; ++o) {
      double sum = 0;
      for (int64_t i = 0; i < in_features; ++i) {
        sum += Element(x, r * in_features + i) * rounded[o * in_features + i];
      }
      out.push_back(sum);
    }
  }
  return out;
}

}  // namespace binarymos::reference
