#include "engine/kernels/reference/attention.h"

#include <cmath>

#include "engine/kernels/reference/element.h"
#include "engine/kernels/reference/softmax.h"

namespace binarymos::reference {

std::vector<double> Attention(const ConstTensorView& q,
                              const ConstTensorView& keys,
                              const ConstTensorView& values,
                              std::span<const int32_t> block_table,
                              int position) {
  const int64_t num_kv_heads = keys.shape[1];
  const int64_t page = keys.shape[2];
  const int64_t dim = keys.shape[3];
  const int64_t num_heads = q.shape.num_elements() / dim;
  const int64_t group = num_heads / num_kv_heads;
  // The first element of a cached position.
  const auto cached = [&](int64_t kv_head, int p) {
    const int64_t block = block_table[p / page];
    return ((block * num_kv_heads + kv_head) * page + p % page) * dim;
  };
  std::vector<double> out(num_heads * dim);
  for (int64_t head = 0; head < num_heads; ++head) {
    std::vector<double> scores;
    for (int p = 0; p <= position; ++p) {
      double dot = 0;
      for (int64_t d = 0; d < dim; ++d) {
        dot += Element(q, head * dim + d) *
               Element(keys, cached(head / group, p) + d);
      }
      scores.push_back(dot / std::sqrt(static_cast<double>(dim)));
    }
    const std::vector<double> weights = Softmax(scores);
    for (int p = 0; p <= position; ++p) {
      for (int64_t d = 0; d < dim; ++d) {
        out[head * dim + d] +=
            weights[p] * Element(values, cached(head / group, p) + d);
      }
    }
  }
  return out;
}

}  // namespace binarymos::reference
