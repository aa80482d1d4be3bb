#include "engine/kernels/cpu/rope.h"

#include <algorithm>

#include "engine/core/float8.h"

namespace binarymos::cpu {
namespace {

void StoreHead(const CpuContext& context, const RopeCall& call,
               const float* head, int64_t element, void* cache) {
  switch (call.kv) {
    case KvType::kF16:
      context.kernels.float_to_half(
          head, static_cast<uint16_t*>(cache) + element, call.head_dim);
      return;
    case KvType::kF32:
      std::copy_n(head, call.head_dim, static_cast<float*>(cache) + element);
      return;
    case KvType::kE4m3:
      std::transform(head, head + call.head_dim,
                     static_cast<uint8_t*>(cache) + element, FloatToE4m3);
      return;
  }
}

void RunToken(const CpuContext& context, const RopeCall& call, int64_t token) {
  const int64_t dim = call.head_dim;
  const float* cos = call.cos + call.positions[token] * (dim / 2);
  const float* sin = call.sin + call.positions[token] * (dim / 2);
  for (int h = 0; h < call.num_heads; ++h) {
    context.kernels.rotate(call.q + (token * call.num_heads + h) * dim, cos,
                           sin, dim / 2);
  }
  const int64_t block = call.kv_slots[token] / kKvPage;
  const int64_t offset = call.kv_slots[token] % kKvPage;
  for (int h = 0; h < call.num_kv_heads; ++h) {
    const int64_t head = (token * call.num_kv_heads + h) * dim;
    context.kernels.rotate(call.k + head, cos, sin, dim / 2);
    const int64_t element =
        ((block * call.num_kv_heads + h) * kKvPage + offset) * dim;
    StoreHead(context, call, call.k + head, element, call.keys);
    StoreHead(context, call, call.v + head, element, call.values);
  }
}

}  // namespace

void RopeAndWriteKv(const CpuContext& context, const RopeCall& call) {
  const auto tokens = static_cast<int64_t>(call.positions.size());
  const int64_t cost =
      int64_t{call.num_heads + 2 * call.num_kv_heads} * call.head_dim / 8;
  context.pool.ParallelFor(tokens, Grain(context.pool, tokens, cost),
                           [&](int64_t begin, int64_t end) {
                             for (int64_t t = begin; t < end; ++t) {
                               RunToken(context, call, t);
                             }
                           });
}

}  // namespace binarymos::cpu
