#include "engine/backend/cpu_backend.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/api/types.h"
#include "engine/backend/host_resources.h"
#include "engine/core/check.h"
#include "engine/kernels/cpu/float16_linear.h"
#include "engine/kernels/cpu/rms_norm.h"
#include "engine/kernels/cpu/rope.h"
#include "engine/kernels/cpu/rows.h"
#include "engine/kernels/cpu/swiglu.h"

namespace binarymos {
namespace {

constexpr int kDefaultActivationBits = 14;

// Longer than the parts of a step that one thread computes alone, so that its
// some 500 rounds of work need no system call; too short to be seen when idle.
constexpr std::chrono::microseconds kSpin{50};
constexpr std::chrono::microseconds kNoSpin{0};

static_assert(kBlockSize == cpu::kKvPage);

// "auto" takes the first that the CPU has.
constexpr cpu::BinaryMosPath kPaths[] = {
    cpu::BinaryMosPath::kAmx, cpu::BinaryMosPath::kAvx512,
    cpu::BinaryMosPath::kAvx2, cpu::BinaryMosPath::kNeon,
    cpu::BinaryMosPath::kPortable};

const char* Lacks(cpu::BinaryMosPath path) {
  switch (path) {
    case cpu::BinaryMosPath::kAmx:
      return "AMX (TILE and INT8, and the system's leave to use it) or AVX-512";
    case cpu::BinaryMosPath::kAvx512:
      return "AVX-512 (F, BW, VL and DQ)";
    case cpu::BinaryMosPath::kAvx2:
      return "AVX2, FMA or F16C";
    default:
      return Name(path);
  }
}

// Null where they cannot run.
const cpu::CpuKernels* KernelsOf(cpu::BinaryMosPath path) {
  switch (path) {
    case cpu::BinaryMosPath::kPortable:
      return &cpu::PortableKernels();
    case cpu::BinaryMosPath::kAvx2:
      return cpu::Avx2Kernels();
    case cpu::BinaryMosPath::kAvx512:
    case cpu::BinaryMosPath::kAmx:  // of the binary linear alone
      return cpu::Avx512Kernels();
    case cpu::BinaryMosPath::kNeon:
      return cpu::NeonKernels();
  }
  return nullptr;
}

class CpuFloat16Linear : public PackedLinear {
 public:
  CpuFloat16Linear(const LinearTensors& tensors, Tensor weight, Tensor bias)
      : PackedLinear(LinearKind::kFloat16, tensors.in_features,
                     tensors.out_features, 0),
        weight_(std::move(weight)),
        bias_(std::move(bias)) {}

  size_t bytes() const override { return weight_.bytes() + bias_.bytes(); }
  const uint16_t* weight() const {
    return static_cast<const uint16_t*>(weight_.view().data);
  }
  const uint16_t* bias() const {  // null if absent
    return static_cast<const uint16_t*>(bias_.view().data);
  }

 private:
  Tensor weight_;
  Tensor bias_;
};

class CpuBinaryMosLinear : public PackedLinear {
 public:
  explicit CpuBinaryMosLinear(cpu::PackedBinaryMos packed)
      : PackedLinear(LinearKind::kBinaryMos, packed.in_features(),
                     packed.out_features(),
                     packed.has_gate() ? packed.num_experts() : 0),
        packed_(std::move(packed)) {}

  size_t bytes() const override { return packed_.bytes(); }
  const cpu::PackedBinaryMos& packed() const { return packed_; }

 private:
  cpu::PackedBinaryMos packed_;
};

class CpuInt8Linear : public PackedLinear {
 public:
  explicit CpuInt8Linear(cpu::PackedInt8 packed)
      : PackedLinear(LinearKind::kInt8, packed.in_features(),
                     packed.out_features(), 0),
        packed_(std::move(packed)) {}

  size_t bytes() const override { return packed_.bytes(); }
  const cpu::PackedInt8& packed() const { return packed_; }

 private:
  cpu::PackedInt8 packed_;
};

const CpuFloat16Linear& AsFloat16(const PackedLinear& linear) {
  BINARYMOS_CHECK(linear.kind() == LinearKind::kFloat16);
  return static_cast<const CpuFloat16Linear&>(linear);
}

const CpuBinaryMosLinear& AsBinaryMos(const PackedLinear& linear) {
  BINARYMOS_CHECK(linear.kind() == LinearKind::kBinaryMos);
  return static_cast<const CpuBinaryMosLinear&>(linear);
}

const CpuInt8Linear& AsInt8(const PackedLinear& linear) {
  BINARYMOS_CHECK(linear.kind() == LinearKind::kInt8);
  return static_cast<const CpuInt8Linear&>(linear);
}

const uint16_t* Halves(const ConstTensorView& tensor) {
  BINARYMOS_CHECK(tensor.dtype == DType::kF16) << Name(tensor.dtype);
  return tensor.span<uint16_t>().data();
}

cpu::KvType KvTypeOf(const KvLayer& kv) {
  BINARYMOS_CHECK(kv.keys.dtype == kv.values.dtype);
  switch (kv.keys.dtype) {
    case DType::kF16:
      return cpu::KvType::kF16;
    case DType::kF32:
      return cpu::KvType::kF32;
    case DType::kF8E4M3:
      return cpu::KvType::kE4m3;
    default:
      BINARYMOS_CHECK(false) << Name(kv.keys.dtype);
      return {};
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CpuBackend::Create(
    const BackendOptions& options) {
  const std::string& name = options.cpu_kernels;
  std::optional<cpu::BinaryMosPath> path;
  for (const cpu::BinaryMosPath each : kPaths) {
    if (name == "auto" ? cpu::Supports(each) : name == cpu::Name(each)) {
      path = each;
      break;
    }
  }
  if (!path.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "cpu_kernels is \"", name,
        "\"; it must be auto, amx, avx512, avx2, neon, portable or reference"));
  }
  if (!cpu::Supports(*path)) {
    return absl::UnavailableError(absl::StrCat("cpu_kernels=", name,
                                               ", but this CPU lacks ",
                                               Lacks(*path), "; use auto"));
  }
  const int usable_cpus = UsableCpus();
  const int num_threads =
      options.num_threads > 0 ? options.num_threads : usable_cpus;
  return std::make_unique<CpuBackend>(CpuBackendOptions{
      // More threads than CPUs take turns: polling would be in the way.
      .threads = {.num_threads = num_threads,
                  .spin = num_threads <= usable_cpus ? kSpin : kNoSpin,
                  .pin = options.cpu_pin},
      .kernels = KernelsOf(*path),
      .binary_mos = *path,
      .activation_bits = options.activation_bits > 0 ? options.activation_bits
                                                     : kDefaultActivationBits});
}

CpuBackend::CpuBackend(const CpuBackendOptions& options)
    : options_(options), pool_(options.threads) {
  BINARYMOS_CHECK(options.kernels != nullptr);
}

std::string CpuBackend::description() const {
  const int threads = pool_.num_threads();
  return absl::StrCat("cpu (", cpu::Name(options_.binary_mos), ", ", threads,
                      threads == 1 ? " thread" : " threads",
                      options_.threads.pin ? ", pinned)" : ")");
}

absl::StatusOr<std::unique_ptr<PackedLinear>> CpuBackend::Pack(
    const LinearTensors& tensors) {
  switch (tensors.kind) {
    case LinearKind::kFloat16:
      return PackFloat16(tensors);
    case LinearKind::kBinaryMos:
      return PackBinaryMos(tensors);
    case LinearKind::kInt8:
      return PackInt8(tensors);
  }
  return absl::InternalError("unknown kind of linear layer");
}

absl::StatusOr<std::unique_ptr<PackedLinear>> CpuBackend::PackFloat16(
    const LinearTensors& tensors) {
  absl::StatusOr<Tensor> weight =
      Allocate(tensors.weight.dtype, tensors.weight.shape);
  if (!weight.ok()) return weight.status();
  CopyInParallel(tensors.weight, weight->view());
  absl::StatusOr<Tensor> bias = Tensor();
  if (tensors.bias) bias = Upload(tensors.bias);
  if (!bias.ok()) return bias.status();
  return std::make_unique<CpuFloat16Linear>(tensors, *std::move(weight),
                                            *std::move(bias));
}

absl::StatusOr<std::unique_ptr<PackedLinear>> CpuBackend::PackInt8(
    const LinearTensors& tensors) {
  BINARYMOS_CHECK(!tensors.bias) << "an Int8 linear has no bias";
  absl::StatusOr<cpu::PackedInt8> packed =
      cpu::PackedInt8::Pack(tensors.weight, pool_);
  if (!packed.ok()) return packed.status();
  int8_workspace_.Reserve(packed->num_slices());
  return std::make_unique<CpuInt8Linear>(*std::move(packed));
}

void CpuBackend::CopyInParallel(const ConstTensorView& from,
                                const TensorView& to) {
  const auto bytes = static_cast<int64_t>(from.bytes());
  const auto* source = static_cast<const char*>(from.data);
  auto* target = static_cast<char*>(to.data);
  const int64_t part = bytes / pool_.num_threads() + 1;
  pool_.ParallelFor(bytes, part, [&](int64_t begin, int64_t end) {
    std::copy(source + begin, source + end, target + begin);
  });
}

absl::StatusOr<std::unique_ptr<PackedLinear>> CpuBackend::PackBinaryMos(
    const LinearTensors& tensors) {
  absl::StatusOr<cpu::PackedBinaryMos> packed =
      cpu::PackedBinaryMos::Pack({.sign = tensors.sign,
                                  .gate = tensors.gate,
                                  .in_scale = tensors.in_scale,
                                  .out_scale = tensors.out_scale,
                                  .bias = tensors.bias},
                                 &pool_);
  if (!packed.ok()) return packed.status();
  max_in_features_ = std::max(max_in_features_, packed->in_features());
  if (absl::Status status = ReserveRows(reserved_rows_); !status.ok()) {
    return status;
  }
  return std::make_unique<CpuBinaryMosLinear>(*std::move(packed));
}

absl::Status CpuBackend::Reserve(int max_tokens, int max_logit_rows) {
  return ReserveRows(std::max(max_tokens, max_logit_rows));
}

absl::Status CpuBackend::ReserveRows(int64_t rows) {
  reserved_rows_ = std::max(reserved_rows_, rows);
  if (reserved_rows_ == 0 || max_in_features_ == 0) return absl::OkStatus();
  return workspace_.Reserve(reserved_rows_, max_in_features_);
}

void CpuBackend::Embed(const PackedLinear& table, const TensorView& out) {
  const CpuFloat16Linear& float16 = AsFloat16(table);
  BINARYMOS_CHECK(out.shape ==
                  (Shape{batch().num_tokens(), table.in_features()}));
  cpu::Embed(context(), float16.weight(), table.out_features(),
             table.in_features(), batch().tokens, Floats(out));
}

void CpuBackend::RmsNorm(const ConstTensorView& x,
                         const ConstTensorView& weight, float eps,
                         const TensorView& out) {
  BINARYMOS_CHECK(out.shape == x.shape);
  BINARYMOS_CHECK_EQ(weight.shape[0], x.shape[1]);
  cpu::RmsNorm(context(), Floats(x), Halves(weight), eps, x.shape[0],
               x.shape[1], Floats(out));
}

void CpuBackend::Linear(const PackedLinear& linear, const ConstTensorView& x,
                        Output output, const TensorView& y,
                        const TensorView& gate_sums) {
  const int64_t rows = x.shape[0];
  BINARYMOS_CHECK_EQ(x.shape[1], linear.in_features());
  BINARYMOS_CHECK(y.shape == (Shape{rows, linear.out_features()}));
  if (rows == 0) return;
  if (linear.kind() == LinearKind::kFloat16) {
    const CpuFloat16Linear& float16 = AsFloat16(linear);
    return cpu::Float16Linear(context(),
                              {.weight = float16.weight(),
                               .bias = float16.bias(),
                               .in = linear.in_features(),
                               .out = linear.out_features(),
                               .x = Floats(x),
                               .rows = rows,
                               .accumulate = output == Output::kAccumulate,
                               .y = Floats(y)});
  }
  if (linear.kind() == LinearKind::kInt8) {
    BINARYMOS_CHECK(output == Output::kStore) << "of an Int8 linear";
    return cpu::Int8Linear(context(), AsInt8(linear).packed(),
                           {.x = Floats(x),
                            .rows = rows,
                            .activation_bits = options_.activation_bits,
                            .y = Floats(y)},
                           int8_workspace_);
  }
  if (rows > reserved_rows_) {
    if (absl::Status status = ReserveRows(rows); !status.ok()) {
      return Fail(status);
    }
  }
  const bool sum_gates = gate_sums && linear.num_experts() > 0;
  if (sum_gates) {
    BINARYMOS_CHECK_EQ(gate_sums.shape[0], linear.num_experts());
  }
  cpu::RunBinaryMos(AsBinaryMos(linear).packed(),
                    {.x = Floats(x),
                     .y = Floats(y),
                     .rows = rows,
                     .accumulate = output == Output::kAccumulate,
                     .gate_sums = sum_gates ? Floats(gate_sums) : nullptr,
                     .activation_bits = options_.activation_bits,
                     .path = options_.binary_mos},
                    workspace_, pool_);
}

void CpuBackend::RopeAndWriteKv(const AttentionShape& shape,
                                const RopeTable& rope, const TensorView& q,
                                const TensorView& k, const ConstTensorView& v,
                                const KvLayer& kv) {
  cpu::RopeAndWriteKv(context(), {.num_heads = shape.num_heads,
                                  .num_kv_heads = shape.num_kv_heads,
                                  .head_dim = shape.head_dim,
                                  .positions = batch().positions,
                                  .kv_slots = batch().kv_slots,
                                  .cos = Floats(rope.cos),
                                  .sin = Floats(rope.sin),
                                  .q = Floats(q),
                                  .k = Floats(k),
                                  .v = Floats(v),
                                  .keys = kv.keys.data,
                                  .values = kv.values.data,
                                  .kv = KvTypeOf(kv)});
}

void CpuBackend::Attention(const AttentionShape& shape,
                           const ConstTensorView& q, const KvLayer& kv,
                           const TensorView& out) {
  attention_.Run(context(), {.num_heads = shape.num_heads,
                             .num_kv_heads = shape.num_kv_heads,
                             .head_dim = shape.head_dim,
                             .positions = batch().positions,
                             .query_starts = batch().query_starts,
                             .block_tables = batch().block_tables,
                             .block_table_starts = batch().block_table_starts,
                             .q = Floats(q),
                             .keys = kv.keys.data,
                             .values = kv.values.data,
                             .kv = KvTypeOf(kv),
                             .out = Floats(out)});
}

void CpuBackend::SwiGlu(const ConstTensorView& gate, const ConstTensorView& up,
                        const TensorView& out) {
  BINARYMOS_CHECK(gate.shape == up.shape && out.shape == up.shape);
  cpu::SwiGlu(context(), Floats(gate), Floats(up), gate.shape.num_elements(),
              Floats(out));
}

void CpuBackend::GatherLogitRows(const ConstTensorView& x,
                                 const TensorView& out) {
  BINARYMOS_CHECK(out.shape == (Shape{batch().num_logit_rows(), x.shape[1]}));
  cpu::GatherRows(Floats(x), x.shape[0], x.shape[1], batch().logit_rows,
                  Floats(out));
}

}  // namespace binarymos
