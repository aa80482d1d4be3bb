#include "engine/backend/reference_backend.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "engine/api/types.h"
#include "engine/core/check.h"
#include "engine/core/float16.h"
#include "engine/core/float8.h"
#include "engine/kernels/reference/attention.h"
#include "engine/kernels/reference/binary_mos_linear.h"
#include "engine/kernels/reference/embed.h"
#include "engine/kernels/reference/float16_linear.h"
#include "engine/kernels/reference/int8_linear.h"
#include "engine/kernels/reference/rms_norm.h"
#include "engine/kernels/reference/rope.h"
#include "engine/kernels/reference/swiglu.h"

namespace binarymos {
namespace {

// Owns copies of the tensors that Pack was given.
class ReferenceLinear : public PackedLinear {
 public:
  ReferenceLinear(const LinearTensors& tensors, std::vector<Tensor> owners)
      : PackedLinear(tensors.kind, tensors.in_features, tensors.out_features,
                     tensors.gate ? tensors.num_experts : 0),
        tensors_(tensors),
        owners_(std::move(owners)) {}

  size_t bytes() const override {
    size_t sum = 0;
    for (const Tensor& owner : owners_) sum += owner.bytes();
    return sum;
  }
  const LinearTensors& tensors() const { return tensors_; }

 private:
  LinearTensors tensors_;  // views of owners_
  std::vector<Tensor> owners_;
};

const LinearTensors& TensorsOf(const PackedLinear& linear) {
  return static_cast<const ReferenceLinear&>(linear).tensors();
}

// Rounds to f32.
void Store(const std::vector<double>& values, const TensorView& out) {
  const std::span<float> floats = out.span<float>();
  BINARYMOS_CHECK_EQ(values.size(), floats.size());
  std::copy(values.begin(), values.end(), floats.begin());
}

void Accumulate(const std::vector<double>& values, const TensorView& out) {
  const std::span<float> floats = out.span<float>();
  BINARYMOS_CHECK_EQ(values.size(), floats.size());
  for (size_t i = 0; i < values.size(); ++i) {
    floats[i] = static_cast<float>(floats[i] + values[i]);
  }
}

// The sum of the rows of [rows, width].
std::vector<double> SumRows(const std::vector<double>& values, int width) {
  std::vector<double> sums(width);
  for (size_t i = 0; i < values.size(); ++i) sums[i % width] += values[i];
  return sums;
}

}  // namespace

absl::StatusOr<std::unique_ptr<PackedLinear>> ReferenceBackend::Pack(
    const LinearTensors& tensors) {
  LinearTensors copies = tensors;
  std::vector<Tensor> owners;
  for (ConstTensorView* view :
       {&copies.weight, &copies.sign, &copies.gate, &copies.in_scale,
        &copies.out_scale, &copies.bias}) {
    if (!*view) continue;
    absl::StatusOr<Tensor> owner = Upload(*view);
    if (!owner.ok()) return owner.status();
    *view = owner->view();
    owners.push_back(*std::move(owner));
  }
  return std::make_unique<ReferenceLinear>(copies, std::move(owners));
}

absl::Status ReferenceBackend::Reserve(int /*max_tokens*/,
                                       int /*max_logit_rows*/) {
  return absl::OkStatus();  // there is no workspace
}

void ReferenceBackend::Embed(const PackedLinear& table, const TensorView& out) {
  Store(reference::Embed(TensorsOf(table).weight, batch().tokens), out);
}

void ReferenceBackend::RmsNorm(const ConstTensorView& x,
                               const ConstTensorView& weight, float eps,
                               const TensorView& out) {
  Store(reference::RmsNorm(x, weight, eps), out);
}

void ReferenceBackend::Linear(const PackedLinear& linear,
                              const ConstTensorView& x, Output output,
                              const TensorView& y,
                              const TensorView& gate_sums) {
  const LinearTensors& tensors = TensorsOf(linear);
  std::vector<double> result;
  if (tensors.kind == LinearKind::kFloat16) {
    result = reference::Float16Linear(x, tensors.weight, tensors.bias);
  } else if (tensors.kind == LinearKind::kInt8) {
    BINARYMOS_CHECK(!tensors.bias);
    result = reference::Int8Linear(x, tensors.weight);
  } else {
    reference::BinaryMosResult mos =
        reference::BinaryMosLinear({.sign = tensors.sign,
                                    .gate = tensors.gate,
                                    .in_scale = tensors.in_scale,
                                    .out_scale = tensors.out_scale,
                                    .bias = tensors.bias},
                                   x);
    if (gate_sums && tensors.gate) {
      Accumulate(SumRows(mos.gates, tensors.num_experts), gate_sums);
    }
    result = std::move(mos.y);
  }
  if (output == Output::kStore) {
    Store(result, y);
  } else {
    Accumulate(result, y);
  }
}

void ReferenceBackend::RopeAndWriteKv(const AttentionShape& shape,
                                      const RopeTable& rope,
                                      const TensorView& q, const TensorView& k,
                                      const ConstTensorView& v,
                                      const KvLayer& kv) {
  for (const TensorView* view : {&q, &k}) {
    Store(reference::Rope(*view, shape.head_dim, batch().positions, rope.cos,
                          rope.sin),
          *view);
  }
  WriteCache(shape, k, kv.keys);
  WriteCache(shape, v, kv.values);
}

void ReferenceBackend::WriteCache(const AttentionShape& shape,
                                  const ConstTensorView& heads,
                                  const TensorView& cache) const {
  const std::span<const float> values = heads.span<float>();
  const int64_t dim = shape.head_dim;
  for (int t = 0; t < batch().num_tokens(); ++t) {
    const int64_t slot = batch().kv_slots[t];
    for (int h = 0; h < shape.num_kv_heads; ++h) {
      const int64_t to =
          ((slot / kBlockSize * shape.num_kv_heads + h) * kBlockSize +
           slot % kBlockSize) *
          dim;
      const int64_t from = (int64_t{t} * shape.num_kv_heads + h) * dim;
      for (int64_t d = 0; d < dim; ++d) {
        if (cache.dtype == DType::kF16) {
          cache.span<uint16_t>()[to + d] = FloatToHalf(values[from + d]);
        } else if (cache.dtype == DType::kF8E4M3) {
          cache.span<uint8_t>()[to + d] = FloatToE4m3(values[from + d]);
        } else {
          cache.span<float>()[to + d] = values[from + d];
        }
      }
    }
  }
}

void ReferenceBackend::Attention(const AttentionShape& /*shape*/,
                                 const ConstTensorView& q, const KvLayer& kv,
                                 const TensorView& out) {
  const BatchView& b = batch();
  for (int s = 0; s < b.num_seqs(); ++s) {
    const int table_begin = b.block_table_starts[s];
    const std::span<const BlockId> table = b.block_tables.subspan(
        table_begin, b.block_table_starts[s + 1] - table_begin);
    for (int t = b.query_starts[s]; t < b.query_starts[s + 1]; ++t) {
      ConstTensorView query = q;
      query.shape = Shape{q.shape[1]};
      query.data = q.span<float>().data() + t * q.shape[1];
      Store(reference::Attention(query, kv.keys, kv.values, table,
                                 b.positions[t]),
            out.Row(t));
    }
  }
}

void ReferenceBackend::SwiGlu(const ConstTensorView& gate,
                              const ConstTensorView& up,
                              const TensorView& out) {
  Store(reference::SwiGlu(gate, up), out);
}

void ReferenceBackend::GatherLogitRows(const ConstTensorView& x,
                                       const TensorView& out) {
  const std::span<const float> values = x.span<float>();
  std::span<float> rows = out.span<float>();
  const int64_t hidden = x.shape[1];
  for (const int32_t row : batch().logit_rows) {
    std::copy_n(values.begin() + row * hidden, hidden, rows.begin());
    rows = rows.subspan(hidden);
  }
}

}  // namespace binarymos
