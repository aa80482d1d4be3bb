#include "engine/kernels/cpu/binary_mos_linear.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/core/check.h"
#include "engine/kernels/cpu/binary_mos_linear_inl.h"
#include "engine/kernels/cpu/cpu_features.h"

namespace binarymos::cpu {
namespace {

constexpr size_t kAlignment = 64;

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Cuts one allocation into aligned parts. Without memory it only counts.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<uint8_t*>(base)) {}

  template <typename T>
  T* Take(size_t count) {
    void* part = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return static_cast<T*>(part);
  }
  size_t used() const { return used_; }

 private:
  uint8_t* base_;
  size_t used_ = 0;
};

void CheckShapes(const BinaryMosTensors& tensors) {
  BINARYMOS_CHECK(tensors.sign && tensors.in_scale && tensors.out_scale);
  const int64_t out = tensors.sign.shape[0];
  const int64_t in = tensors.sign.shape[1] * 8;
  const int64_t experts = tensors.in_scale.shape[0];
  BINARYMOS_CHECK(out >= 1 && in >= 8 && experts >= 1);
  const auto check = [](const ConstTensorView& view, DType dtype, Shape shape) {
    BINARYMOS_CHECK(view.dtype == dtype && view.shape == shape &&
                    view.device == Device::kHost)
        << view.shape.ToString() << " vs. " << shape.ToString();
  };
  check(tensors.sign, DType::kU8, {out, in / 8});
  check(tensors.in_scale, DType::kF16, {experts, in});
  check(tensors.out_scale, DType::kF16, {experts, out});
  if (tensors.gate) {
    check(tensors.gate, DType::kF16, {experts, in});
  } else {
    BINARYMOS_CHECK_EQ(experts, 1) << "experts without a gate";
  }
  if (tensors.bias) check(tensors.bias, DType::kF16, {out});
}

// From [out, in / 8] to the layout of binary_mos_linear_kernels.h. `packed` is
// zero before, which is what padding holds. Strips [begin, end).
void PackSigns(const uint8_t* sign, const BinaryMosLayer& layer, int64_t begin,
               int64_t end, uint8_t* packed) {
  const int64_t row_bytes = layer.in_features / 8;
  for (int64_t s = begin; s < end; ++s) {
    const int64_t first = s * kStripBlocks;
    const int64_t blocks =
        std::min<int64_t>(kStripBlocks, layer.num_blocks - first);
    uint8_t* strip = packed + first * layer.num_slices * kBlockBytes;
    for (int64_t r = 0; r < blocks * kBlockRows; ++r) {
      const int64_t row = first * kBlockRows + r;
      if (row >= layer.out_features) break;
      uint8_t* column =
          strip + r / kBlockRows * kBlockBytes + RowPosition(r % kBlockRows);
      for (int64_t j = 0; j < row_bytes; ++j) {
        column[j / kSlicePairs * blocks * kBlockBytes +
               j % kSlicePairs * kBlockRows] = sign[row * row_bytes + j];
      }
    }
  }
}

// A copy of `view`, or null if it is absent.
const uint16_t* CopyHalves(const ConstTensorView& view, Carver& carver) {
  if (!view) return nullptr;
  auto* copy = carver.Take<uint16_t>(view.shape.num_elements());
  if (copy != nullptr) std::memcpy(copy, view.data, view.bytes());
  return copy;
}

const BinaryMosKernels& KernelsFor(BinaryMosPath path,
                                   const BinaryMosTile& tile) {
  BINARYMOS_CHECK(Supports(path)) << Name(path);
  switch (path) {
#if defined(__x86_64__)
    case BinaryMosPath::kAvx2:
      return Avx2BinaryMosKernels();
    case BinaryMosPath::kAvx512:
      return Avx512BinaryMosKernels();
    case BinaryMosPath::kAmx:
      return tile.tokens >= kAmxMinTokens && tile.qmax <= kAmxMaxQuantized
                 ? AmxBinaryMosKernels()
                 : Avx512BinaryMosKernels();
#elif defined(__aarch64__)
    case BinaryMosPath::kNeon:
      return NeonBinaryMosKernels();
#endif
    default:
      return PortableBinaryMosKernels();
  }
}

// The tile's arrays for `tokens` tokens.
void CarveTile(int64_t tokens, int64_t num_slices, Carver& carver,
               BinaryMosTile& tile) {
  tile.tokens = tokens;
  tile.gates = carver.Take<float[kMaxBinaryMosExperts]>(tokens);
  tile.slices = carver.Take<BinaryMosSlice>(num_slices * tokens);
  tile.tables = carver.Take<uint8_t>(num_slices * tokens * kTableBytes);
}

size_t TileBytes(int64_t tokens, int64_t num_slices) {
  Carver carver(nullptr);
  BinaryMosTile tile;
  CarveTile(tokens, num_slices, carver, tile);
  return carver.used();
}

void RunTile(const BinaryMosLayer& layer, const BinaryMosKernels& kernels,
             const BinaryMosTile& tile, float* gate_sums, ThreadPool& pool) {
  // Few tokens: several threads share the slices of two.
  const int64_t pairs = CeilDiv(tile.tokens, 2);
  const int64_t parts =
      std::min(CeilDiv(pool.num_threads(), pairs), layer.num_slices);
  pool.ParallelFor(pairs * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i / parts * 2;
      const int tokens =
          static_cast<int>(std::min<int64_t>(2, tile.tokens - first));
      const int64_t part = i % parts;
      kernels.prepare(layer, tile, first, tokens,
                      part * layer.num_slices / parts,
                      (part + 1) * layer.num_slices / parts);
    }
  });
  if (gate_sums != nullptr) {
    for (int64_t t = 0; t < tile.tokens; ++t) {
      const float* g = tile.gates[t];
      for (int e = 0; e < layer.num_experts; ++e) gate_sums[e] += g[e];
    }
  }
  // At least four tasks per thread keep the threads busy to the end. With one
  // token the strips of a task follow each other, which reads memory in order.
  const int64_t strips = CeilDiv(layer.num_blocks, kStripBlocks);
  const int64_t grain = std::clamp<int64_t>(
      strips / (int64_t{4} * pool.num_threads()), 1, kTaskStrips);
  pool.ParallelFor(strips, grain, [&](int64_t begin, int64_t end) {
    if (tile.tokens > 1) return kernels.multiply(layer, tile, begin, end);
    for (int64_t s = begin; s < end; ++s) {
      kernels.multiply(layer, tile, s, s + 1);
    }
  });
}

}  // namespace

const char* Name(BinaryMosPath path) {
  switch (path) {
    case BinaryMosPath::kPortable:
      return "portable";
    case BinaryMosPath::kAvx2:
      return "avx2";
    case BinaryMosPath::kAvx512:
      return "avx512";
    case BinaryMosPath::kAmx:
      return "amx";
    case BinaryMosPath::kNeon:
      return "neon";
  }
  return "unknown";
}

bool Supports(BinaryMosPath path) {
  switch (path) {
    case BinaryMosPath::kPortable:
      return true;
    case BinaryMosPath::kAvx2:
      return SupportsAvx2();
    case BinaryMosPath::kAvx512:
      return SupportsAvx512();
    case BinaryMosPath::kAmx:
      return SupportsAmx();
    case BinaryMosPath::kNeon:
#if defined(__aarch64__)
      return true;
#else
      return false;
#endif
  }
  return false;
}

absl::StatusOr<PackedBinaryMos> PackedBinaryMos::Pack(
    const BinaryMosTensors& tensors, ThreadPool* pool) {
  CheckShapes(tensors);
  PackedBinaryMos packed;
  BinaryMosLayer& layer = packed.layer_;
  layer.out_features = tensors.sign.shape[0];
  layer.in_features = tensors.sign.shape[1] * 8;
  if (tensors.in_scale.shape[0] > kMaxBinaryMosExperts) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a binary linear has ", tensors.in_scale.shape[0], " experts; at most ",
        kMaxBinaryMosExperts, " are supported"));
  }
  layer.num_experts = static_cast<int>(tensors.in_scale.shape[0]);
  layer.num_slices = CeilDiv(layer.in_features, kSliceInputs);
  layer.num_blocks = CeilDiv(layer.out_features, kBlockRows);

  const auto carve = [&](Carver carver) {
    auto* sign =
        carver.Take<uint8_t>(layer.num_blocks * layer.num_slices * kBlockBytes);
    layer.sign = sign;
    layer.gate = CopyHalves(tensors.gate, carver);
    layer.in_scale = CopyHalves(tensors.in_scale, carver);
    layer.out_scale = CopyHalves(tensors.out_scale, carver);
    layer.bias = CopyHalves(tensors.bias, carver);
    return std::make_pair(sign, carver.used());
  };
  auto buffer = Buffer::AllocateHost(carve(Carver(nullptr)).second);
  if (!buffer.ok()) return buffer.status();
  packed.buffer_ = *std::move(buffer);
  uint8_t* sign = carve(Carver(packed.buffer_.data())).first;
  const auto pack = [&](int64_t begin, int64_t end) {
    PackSigns(static_cast<const uint8_t*>(tensors.sign.data), layer, begin, end,
              sign);
  };
  const int64_t strips = CeilDiv(layer.num_blocks, kStripBlocks);
  if (pool == nullptr) {
    pack(0, strips);
  } else {
    pool->ParallelFor(strips, CeilDiv(strips, pool->num_threads()), pack);
  }
  return packed;
}

absl::Status BinaryMosWorkspace::Reserve(int64_t max_rows,
                                         int64_t max_in_features) {
  const size_t needed = TileBytes(std::clamp<int64_t>(max_rows, 1, kTileTokens),
                                  CeilDiv(max_in_features, kSliceInputs));
  if (needed <= buffer_.bytes()) return absl::OkStatus();
  auto buffer = Buffer::AllocateHost(needed);
  if (!buffer.ok()) return buffer.status();
  buffer_ = *std::move(buffer);
  return absl::OkStatus();
}

void RunBinaryMos(const PackedBinaryMos& linear, const BinaryMosCall& call,
                  BinaryMosWorkspace& workspace, ThreadPool& pool) {
  const BinaryMosLayer& layer = linear.layer();
  const int bits = call.activation_bits;
  BINARYMOS_CHECK(bits == 8 || bits == 12 || bits == 14 || bits == 16) << bits;
  BINARYMOS_CHECK_GE(
      workspace.bytes(),
      TileBytes(std::min<int64_t>(call.rows, kTileTokens), layer.num_slices));
  for (int64_t row = 0; row < call.rows; row += kTileTokens) {
    BinaryMosTile tile;
    Carver carver(workspace.data());
    CarveTile(std::min<int64_t>(kTileTokens, call.rows - row), layer.num_slices,
              carver, tile);
    tile.x = call.x + row * layer.in_features;
    tile.y = call.y + row * layer.out_features;
    tile.accumulate = call.accumulate;
    tile.qmax = static_cast<float>((1 << (bits - 1)) - 1);
    RunTile(layer, KernelsFor(call.path, tile), tile, call.gate_sums, pool);
  }
}

}  // namespace binarymos::cpu
