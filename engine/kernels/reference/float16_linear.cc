#include "engine/kernels/reference/float16_linear.h"

#include "engine/kernels/reference/element.h"

namespace binarymos::reference {

std::vector<double> Float16Linear(const ConstTensorView& x,
                                  const ConstTensorView& weight,
                                  const ConstTensorView& bias) {
  const int64_t rows = x.shape[0];
  const int64_t out_features = weight.shape[0];
  const int64_t in_features = weight.shape[1];
  std::vector<double> out;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t o = 0; o < out_features; ++o) {
      double sum = bias ? Element(bias, o) : 0.0;
      for (int64_t i = 0; i < in_features; ++i) {
        sum += Element(x, r * in_features + i) *
               Element(weight, o * in_features + i);
      }
      out.push_back(sum);
    }
  }
  return out;
}

}  // namespace binarymos::reference
