#include "engine/kernels/cpu/int8_linear.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "absl/status/status.h"
#include "engine/core/check.h"
#include "engine/core/float16.h"

namespace binarymos::cpu {
namespace {

// As kSliceInputs of canonical_math.h.
constexpr int64_t kSlice = 256;
constexpr int64_t kLargest = 127;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rounds one row to `packed`, whose slices are `stride` bytes apart. Returns
// its scale: 0 for a row of zeros, not finite if a weight is not.
float PackRow(const uint16_t* row, int64_t n, int8_t* packed, int64_t stride) {
  float largest = 0.0f;
  for (int64_t k = 0; k < n; ++k) {
    const float weight = std::abs(HalfToFloat(row[k]));
    if (!std::isfinite(weight)) return weight;
    largest = std::max(largest, weight);
  }
  if (largest == 0.0f) return 0.0f;
  const float scale = largest / kLargest;
  for (int64_t k = 0; k < n; ++k) {
    packed[k / kSlice * stride + k % kSlice] =
        static_cast<int8_t>(std::nearbyint(HalfToFloat(row[k]) / scale));
  }
  return scale;
}

}  // namespace

const int8_t* PackedInt8::block(int64_t i) const {
  return static_cast<const int8_t*>(buffer_.data()) +
         i * num_slices_ * kInt8BlockOuts * kSlice;
}

const float* PackedInt8::scales() const {
  return reinterpret_cast<const float*>(block(num_blocks_));
}

absl::StatusOr<PackedInt8> PackedInt8::Pack(const ConstTensorView& weight,
                                            ThreadPool& pool) {
  BINARYMOS_CHECK(weight.dtype == DType::kF16 && weight.shape.rank() == 2);
  PackedInt8 packed;
  packed.out_ = weight.shape[0];
  packed.in_ = weight.shape[1];
  packed.num_slices_ = CeilDiv(packed.in_, kSlice);
  packed.num_blocks_ = CeilDiv(packed.out_, kInt8BlockOuts);
  const int64_t block_bytes = packed.num_slices_ * kInt8BlockOuts * kSlice;
  absl::StatusOr<Buffer> buffer = Buffer::AllocateHost(
      packed.num_blocks_ *
      (block_bytes + kInt8BlockOuts * static_cast<int64_t>(sizeof(float))));
  if (!buffer.ok()) return buffer.status();
  packed.buffer_ = *std::move(buffer);

  auto* weights = static_cast<int8_t*>(packed.buffer_.data());
  auto* scales =
      reinterpret_cast<float*>(weights + packed.num_blocks_ * block_bytes);
  const auto* halves = static_cast<const uint16_t*>(weight.data);
  std::atomic<bool> finite{true};
  const auto pack = [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      int8_t* row = weights + o / kInt8BlockOuts * block_bytes +
                    o % kInt8BlockOuts * kSlice;
      scales[o] = PackRow(halves + o * packed.in_, packed.in_, row,
                          kInt8BlockOuts * kSlice);
      if (!std::isfinite(scales[o])) finite = false;
    }
  };
  pool.ParallelFor(packed.out_, CeilDiv(packed.out_, pool.num_threads()), pack);
  if (!finite) {
    return absl::InvalidArgumentError(
        "a weight is not finite and cannot be rounded to 8 bits");
  }
  return packed;
}

void Int8Workspace::Reserve(int64_t num_slices) {
  const auto slices = static_cast<size_t>(kRows * num_slices);
  if (slices <= scales_.size()) return;
  q_.resize(slices * kSlice);
  scales_.resize(slices);
}

void Int8Linear(const CpuContext& context, const PackedInt8& layer,
                const Int8LinearCall& call, Int8Workspace& workspace) {
  const int64_t in = layer.in_features();
  const int64_t out = layer.out_features();
  const int64_t slices = layer.num_slices();
  const auto qmax = static_cast<float>((1 << (call.activation_bits - 1)) - 1);
  ThreadPool& pool = context.pool;
  for (int64_t row = 0; row < call.rows; row += Int8Workspace::kRows) {
    const int64_t rows = std::min(Int8Workspace::kRows, call.rows - row);
    pool.ParallelFor(
        rows, Grain(pool, rows, in / 4), [&](int64_t begin, int64_t end) {
          for (int64_t r = begin; r < end; ++r) {
            context.kernels.quantize_row(call.x + (row + r) * in, in, qmax,
                                         workspace.q() + r * slices * kSlice,
                                         workspace.scales() + r * slices);
          }
        });
    const int64_t blocks = layer.num_blocks();
    const int64_t cost = kInt8BlockOuts * (slices * kSlice / 16) * rows;
    pool.ParallelFor(
        blocks, Grain(pool, blocks, cost), [&](int64_t begin, int64_t end) {
          for (int64_t b = begin; b < end; ++b) {
            const int64_t first = b * kInt8BlockOuts;
            context.kernels.int8_linear({
                .q = workspace.q(),
                .scales = workspace.scales(),
                .rows = rows,
                .num_slices = slices,
                .weight = layer.block(b),
                .weight_scales = layer.scales() + first,
                .outs = std::min<int64_t>(kInt8BlockOuts, out - first),
                .y = call.y + row * out + first,
                .y_stride = out,
            });
          }
        });
  }
}

}  // namespace binarymos::cpu
