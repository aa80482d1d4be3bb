#include "engine/kernels/reference/embed.h"

#include "engine/kernels/reference/element.h"

namespace binarymos::reference {

std::vector<double> Embed(const ConstTensorView& table,
                          std::span<const int32_t> tokens) {
  const int64_t hidden = table.shape[1];
  std::vector<double> out;
  for (const int32_t token : tokens) {
    for (int64_t i = 0; i < hidden; ++i) {
      out.push_back(Element(table, token * hidden + i));
    }
  }
  return out;
}

}  // namespace binarymos::reference
