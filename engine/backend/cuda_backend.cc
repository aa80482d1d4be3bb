#include "engine/backend/cuda_backend.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/api/types.h"
#include "engine/core/check.h"

namespace binarymos {
namespace {

static_assert(kBlockSize == cuda::kKvPage);

// For the states of queries whose splits run apart. Enough for as many queries
// as leave multiprocessors idle otherwise.
constexpr size_t kAttentionStateBytes = size_t{16} << 20;

// What grows after loading: the arrays of a batch, recorded steps.
constexpr size_t kLaterBytes = size_t{64} << 20;

// What ReadLater copies without waiting: the gates' sums of 256 layers with 64
// experts.
constexpr size_t kLateReadBytes = size_t{64} << 10;

// Sequences of a step that is worth recording: with more, the device has more
// to do than the host has to launch.
constexpr int kMaxRecordedSeqs = 64;

// So that few recordings serve all lengths of context. Blocks for splits that a
// sequence does not have end at once.
int RoundSplits(int splits) {
  return static_cast<int>(std::bit_ceil(static_cast<unsigned>(splits)));
}

constexpr int64_t kColumns = cuda::kMmaColumns;

// Rows that a Float16 linear splits into halves at a time.
constexpr int64_t kSplitRows = 512;

// The elements of a dense tensor on the device.
template <typename T>
const T* Elements(const ConstTensorView& tensor, DType dtype) {
  BINARYMOS_CHECK(tensor.device == Device::kCuda);
  BINARYMOS_CHECK(tensor.dtype == dtype) << Name(tensor.dtype);
  return static_cast<const T*>(tensor.data);
}
const float* Floats(const ConstTensorView& tensor) {
  return Elements<float>(tensor, DType::kF32);
}
float* Floats(const TensorView& tensor) {
  return const_cast<float*>(Floats(ConstTensorView(tensor)));
}
const uint16_t* Halves(const ConstTensorView& tensor) {
  return Elements<uint16_t>(tensor, DType::kF16);
}
// Null if absent.
const uint16_t* HalvesIfAny(const Tensor& tensor) {
  return tensor.view() ? Halves(tensor.view()) : nullptr;
}

DType TypeOf(const KvLayer& kv) {
  BINARYMOS_CHECK(kv.keys.dtype == kv.values.dtype);
  return kv.keys.dtype;
}

absl::Status NotRecordable(const char* what) {
  return absl::FailedPreconditionError(
      absl::StrCat("a step cannot be recorded: ", what));
}

size_t SharedBytes(const cuda::Kernel& kernel) {
  return std::visit([](const auto& one) { return one.shared_bytes(); }, kernel);
}

// One unit of planes, slices and gates per row, rows in whole groups.
size_t PlaneBytes(int64_t rows, int64_t slices) {
  return cuda::CeilDiv(rows, kColumns) * kColumns * slices * 16 *
         cuda::kSliceWords * sizeof(uint32_t);
}

// Wide blocks read least, narrow ones leave no multiprocessor idle.
template <typename Wide, typename Narrow>
cuda::Kernel WideIfBusy(const cuda::MultiplyArgs& args, int num_sms) {
  const Wide wide{args};
  if (wide.grid().x * wide.grid().y * 4 >= int64_t{3} * num_sms) return wide;
  return Narrow{args};
}

template <int kPlanes>
cuda::Kernel BatchKernel(const cuda::MultiplyArgs& args,
                         const CudaDeviceInfo& info, bool wgmma) {
  if (wgmma && info.has_wgmma) {
    const cuda::Kernel kernel =
        WideIfBusy<cuda::WarpgroupBinaryMos<kPlanes, 1>,
                   cuda::WarpgroupBinaryMos<kPlanes, 2>>(args, info.num_sms);
    // They have the scales of all slices there.
    if (SharedBytes(kernel) <= info.max_shared_bytes) return kernel;
  }
  return WideIfBusy<cuda::BatchBinaryMos<kPlanes, 8>,
                    cuda::BatchBinaryMos<kPlanes, 2>>(args, info.num_sms);
}

cuda::Kernel MultiplyKernel(const cuda::MultiplyArgs& args, int num_planes,
                            const CudaDeviceInfo& info, bool wgmma) {
  if (args.tokens == 1) {
    if (num_planes == 8) return cuda::MultiplyBinaryMos<8>{args};
    return cuda::MultiplyBinaryMos<16>{args};
  }
  if (num_planes == 8) return BatchKernel<8>(args, info, wgmma);
  if (num_planes == 12) return BatchKernel<12>(args, info, wgmma);
  return BatchKernel<16>(args, info, wgmma);
}

// The fast kernel whose blocks are done first: rows of outputs that one
// multiprocessor computes one after the other, and dearer where fewer outputs
// share what L2 delivers.
cuda::Kernel FastKernel(const cuda::FastArgs& args, int num_sms) {
  const auto cost = [&](const auto& kernel) {
    const cuda::Grid grid = kernel.grid();
    return static_cast<double>(cuda::CeilDiv(grid.x * grid.y, num_sms) *
                               kernel.kRows);
  };
  const cuda::FastBinaryMos<4, 4> wide{args};
  const cuda::FastBinaryMos<4, 2> middle{args};
  const cuda::FastBinaryMos<2, 2> narrow{args};
  const double of_middle = 1.1 * cost(middle);
  const double of_narrow = 1.5 * cost(narrow);
  if (cost(wide) <= std::min(of_middle, of_narrow)) return wide;
  if (of_middle <= of_narrow) return middle;
  return narrow;
}

template <typename T>
cuda::RopeAndWriteKv<T> RopeKernel(const AttentionShape& shape,
                                   const CudaBatch& batch,
                                   const RopeTable& rope, const TensorView& q,
                                   const TensorView& k,
                                   const ConstTensorView& v,
                                   const KvLayer& kv) {
  return {.num_heads = shape.num_heads,
          .num_kv_heads = shape.num_kv_heads,
          .head_dim = shape.head_dim,
          .num_tokens = q.shape[0],
          .positions = batch.positions(),
          .kv_slots = batch.kv_slots(),
          .cos = Floats(rope.cos),
          .sin = Floats(rope.sin),
          .q = Floats(q),
          .k = Floats(k),
          .v = Floats(v),
          .keys = static_cast<T*>(kv.keys.data),
          .values = static_cast<T*>(kv.values.data)};
}

// The kernel with as many tiles as suit the device.
template <typename K, typename Cell>
cuda::Kernel WithTiles(cuda::AttentionArgs args, const KvLayer& kv,
                       size_t max_shared_bytes) {
  K kernel{args, static_cast<Cell*>(kv.keys.data),
           static_cast<Cell*>(kv.values.data)};
  const auto bytes_with = [&](int num_tiles) {
    kernel.args.num_tiles = num_tiles;
    return kernel.shared_bytes();
  };
  // As many as leave room for another block, so that one computes while the
  // other waits; where none do, as many as fit; one at least.
  for (const size_t most : {(max_shared_bytes - 1024) / 2, max_shared_bytes}) {
    for (int n = K::kMaxTiles; n > 0; --n) {
      if (bytes_with(n) <= most) return kernel;
    }
  }
  return kernel;
}

// An attention kernel.
struct AttentionKind {
  int max_head_dim;
  int (*tokens_per_block)(int group);
  cuda::Kernel (*kernel)(cuda::AttentionArgs args, const KvLayer& kv,
                         size_t max_shared_bytes);
};
template <typename K, typename Cell>
constexpr AttentionKind kAttentionKind = {K::kMaxHeadDim, &K::TokensPerBlock,
                                          &WithTiles<K, Cell>};

const AttentionKind& KindOf(const KvLayer& kv, int head_dim) {
  using Halves128 = cuda::Attention<uint16_t, 128>;
  using Halves512 = cuda::Attention<uint16_t, 512>;
  switch (TypeOf(kv)) {
    case DType::kF16:
      return head_dim <= Halves128::kMaxHeadDim
                 ? kAttentionKind<Halves128, uint16_t>
                 : kAttentionKind<Halves512, uint16_t>;
    case DType::kF8E4M3:
      return kAttentionKind<cuda::Attention<uint8_t, 128>, uint8_t>;
    default:
      BINARYMOS_CHECK(TypeOf(kv) == DType::kF32) << Name(TypeOf(kv));
      return kAttentionKind<cuda::FloatAttention, float>;
  }
}

}  // namespace

class CudaBackend::Float16 : public PackedLinear {
 public:
  Float16(const LinearTensors& tensors, Tensor weight, Tensor bias)
      : PackedLinear(LinearKind::kFloat16, tensors.in_features,
                     tensors.out_features, 0),
        weight_(std::move(weight)),
        bias_(std::move(bias)) {}

  static const Float16& From(const PackedLinear& linear) {
    BINARYMOS_CHECK(linear.kind() == LinearKind::kFloat16);
    return static_cast<const Float16&>(linear);
  }

  size_t bytes() const override { return weight_.bytes() + bias_.bytes(); }
  const uint16_t* weight() const { return Halves(weight_.view()); }
  const uint16_t* bias() const { return HalvesIfAny(bias_); }

 private:
  Tensor weight_;
  Tensor bias_;
};

class CudaBackend::BinaryMos : public PackedLinear {
 public:
  struct Parts {
    Buffer signs;
    Tensor gate, in_scale, out_scale, bias;
  };

  BinaryMos(const cuda::BinaryMosShape& shape, Parts parts)
      : PackedLinear(LinearKind::kBinaryMos, shape.in, shape.out,
                     parts.gate.view() ? shape.experts : 0),
        shape_(shape),
        parts_(std::move(parts)) {}

  static const BinaryMos& From(const PackedLinear& linear) {
    BINARYMOS_CHECK(linear.kind() == LinearKind::kBinaryMos);
    return static_cast<const BinaryMos&>(linear);
  }

  size_t bytes() const override {
    return parts_.signs.bytes() + parts_.gate.bytes() +
           parts_.in_scale.bytes() + parts_.out_scale.bytes() +
           parts_.bias.bytes();
  }
  const cuda::BinaryMosShape& shape() const { return shape_; }
  const uint32_t* signs() const {
    return static_cast<const uint32_t*>(parts_.signs.data());
  }
  const uint16_t* gate() const { return HalvesIfAny(parts_.gate); }
  const uint16_t* in_scale() const { return HalvesIfAny(parts_.in_scale); }
  cuda::BinaryMosInput Input(const ConstTensorView& x) const {
    return {.x = Floats(x),
            .gate = gate(),
            .in_scale = in_scale(),
            .in = shape_.in,
            .experts = shape_.experts};
  }
  const uint16_t* out_scale() const { return HalvesIfAny(parts_.out_scale); }
  const uint16_t* bias() const { return HalvesIfAny(parts_.bias); }

 private:
  cuda::BinaryMosShape shape_;
  Parts parts_;
};

CudaBackend::CudaBackend(std::unique_ptr<CudaDriver> driver,
                         const CudaBackendOptions& options)
    : driver_(std::move(driver)),
      options_(options),
      sampler_(*driver_, status_) {
  const int bits = options.activation_bits;
  BINARYMOS_CHECK(bits == 8 || bits == 12 || bits == 14 || bits == 16) << bits;
  BINARYMOS_CHECK(options.memory_utilization > 0 &&
                  options.memory_utilization <= 1);
}

CudaBackend::~CudaBackend() {
  // Memory is freed when nothing uses it any more. What failed was reported.
  driver_->Synchronize().IgnoreError();
}

std::string CudaBackend::description() const {
  const CudaDeviceInfo& info = driver_->info();
  return absl::StrCat("cuda:", info.ordinal, " (", info.name, ", compute ",
                      info.compute_major, ".", info.compute_minor, ")");
}

// --- Memory ----------------------------------------------------------------

absl::StatusOr<Tensor> CudaBackend::Allocate(DType dtype, Shape shape) {
  ForgetGraphs();
  const size_t bytes =
      static_cast<size_t>(shape.num_elements()) * SizeOf(dtype);
  absl::StatusOr<Buffer> buffer = driver_->AllocateDevice(bytes);
  if (!buffer.ok()) return buffer.status();
  if (bytes > 0) {
    const absl::Status status = driver_->Zero(buffer->data(), bytes);
    if (!status.ok()) return status;
  }
  return Tensor(*std::move(buffer), dtype, shape, Device::kCuda);
}

absl::StatusOr<Tensor> CudaBackend::Upload(const ConstTensorView& host) {
  BINARYMOS_CHECK(host.device == Device::kHost);
  ForgetGraphs();
  absl::StatusOr<Buffer> buffer = driver_->AllocateDevice(host.bytes());
  if (!buffer.ok()) return buffer.status();
  if (host.bytes() > 0) {
    const absl::Status status =
        driver_->CopyToDevice(buffer->data(), host.data, host.bytes());
    if (!status.ok()) return status;
  }
  return Tensor(*std::move(buffer), host.dtype, host.shape, Device::kCuda);
}

absl::StatusOr<Tensor> CudaBackend::UploadIfAny(const ConstTensorView& host) {
  if (!host) return Tensor();
  return Upload(host);
}

absl::StatusOr<std::unique_ptr<PackedLinear>> CudaBackend::Pack(
    const LinearTensors& tensors) {
  switch (tensors.kind) {
    case LinearKind::kFloat16:
      return PackFloat16(tensors);
    case LinearKind::kBinaryMos:
      return PackBinaryMos(tensors);
    case LinearKind::kInt8:
      return absl::UnimplementedError("CUDA has no linears of 8 bits");
  }
  return absl::InternalError("unknown kind of linear layer");
}

absl::StatusOr<std::unique_ptr<PackedLinear>> CudaBackend::PackFloat16(
    const LinearTensors& tensors) {
  absl::StatusOr<Tensor> weight = Upload(tensors.weight);
  if (!weight.ok()) return weight.status();
  absl::StatusOr<Tensor> bias = UploadIfAny(tensors.bias);
  if (!bias.ok()) return bias.status();
  max_float16_slices_ =
      std::max(max_float16_slices_,
               cuda::CeilDiv(tensors.in_features, cuda::kSliceInputs));
  const absl::Status status = ReserveRows(reserved_rows_);
  if (!status.ok()) return status;
  return std::make_unique<Float16>(tensors, *std::move(weight),
                                   *std::move(bias));
}

absl::StatusOr<std::unique_ptr<PackedLinear>> CudaBackend::PackBinaryMos(
    const LinearTensors& tensors) {
  if (tensors.num_experts > cuda::kMaxExperts) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a binary linear has ", tensors.num_experts, " experts; at most ",
        cuda::kMaxExperts, " are supported"));
  }
  BINARYMOS_CHECK(tensors.gate || tensors.num_experts == 1);
  const cuda::BinaryMosShape shape{tensors.in_features, tensors.out_features,
                                   tensors.num_experts};
  BinaryMos::Parts parts;
  const struct {
    const ConstTensorView& source;
    Tensor& tensor;
  } vectors[] = {{tensors.gate, parts.gate},
                 {tensors.in_scale, parts.in_scale},
                 {tensors.out_scale, parts.out_scale},
                 {tensors.bias, parts.bias}};
  for (const auto& vector : vectors) {
    absl::StatusOr<Tensor> tensor = UploadIfAny(vector.source);
    if (!tensor.ok()) return tensor.status();
    vector.tensor = *std::move(tensor);
  }
  absl::StatusOr<Buffer> signs =
      driver_->AllocateDevice(shape.sign_words() * sizeof(uint32_t));
  if (!signs.ok()) return signs.status();
  absl::StatusOr<Tensor> source = Upload(tensors.sign);
  if (!source.ok()) return source.status();
  absl::Status status = driver_->Launch(
      cuda::PackSigns{.shape = shape,
                      .sign = Elements<uint8_t>(source->view(), DType::kU8),
                      .packed = static_cast<uint32_t*>(signs->data())});
  status.Update(driver_->Synchronize());  // `source` goes away
  if (!status.ok()) return status;
  parts.signs = *std::move(signs);

  max_slices_ = std::max(max_slices_, shape.num_slices());
  max_experts_ = std::max(max_experts_, shape.experts);
  status = ReserveRows(reserved_rows_);
  if (!status.ok()) return status;
  return std::make_unique<BinaryMos>(shape, std::move(parts));
}

absl::StatusOr<size_t> CudaBackend::AvailableMemory() const {
  const absl::StatusOr<CudaMemory> memory = driver_->Memory();
  if (!memory.ok()) return memory.status();
  const auto ours = static_cast<size_t>(options_.memory_utilization *
                                        static_cast<double>(memory->total));
  const size_t kept = memory->total - ours + kLaterBytes;
  return memory->free - std::min(memory->free, kept);
}

absl::Status CudaBackend::Reserve(int max_tokens, int max_logit_rows) {
  if (attention_states_.bytes() == 0) {
    absl::StatusOr<Buffer> states =
        driver_->AllocateDevice(kAttentionStateBytes);
    if (!states.ok()) return states.status();
    attention_states_ = *std::move(states);
  }
  for (LateRead& read : late_reads_) {
    if (read.pinned.bytes() > 0) continue;
    absl::StatusOr<Buffer> pinned = driver_->AllocatePinned(kLateReadBytes);
    if (!pinned.ok()) return pinned.status();
    read.pinned = *std::move(pinned);
  }
  absl::Status status = ReserveIds(max_logit_rows);
  status.Update(device_batch_.Reserve(max_tokens, *driver_));
  if (!status.ok()) return status;
  return ReserveRows(std::max(max_tokens, max_logit_rows));
}

absl::Status CudaBackend::ReserveRows(int64_t rows) {
  reserved_rows_ = std::max(reserved_rows_, rows);
  const int64_t split =
      std::min(reserved_rows_, kSplitRows) * max_float16_slices_;
  const struct {
    Buffer& buffer;
    size_t bytes;
  } workspaces[] = {
      {planes_, PlaneBytes(reserved_rows_, max_slices_)},
      {slices_, reserved_rows_ * max_slices_ * sizeof(cuda::PreparedSlice)},
      {gates_, reserved_rows_ * max_experts_ * sizeof(float)},
      {halves_, split * cuda::kSplitSlice * sizeof(uint16_t)},
      {half_scales_, split * sizeof(float)},
  };
  for (const auto& workspace : workspaces) {
    if (workspace.bytes <= workspace.buffer.bytes()) continue;
    ForgetGraphs();
    absl::StatusOr<Buffer> buffer = driver_->AllocateDevice(workspace.bytes);
    if (!buffer.ok()) return buffer.status();
    workspace.buffer = *std::move(buffer);
  }
  return absl::OkStatus();
}

// --- One step --------------------------------------------------------------

void CudaBackend::BeginStep(const BatchView& batch) {
  BINARYMOS_CHECK(batch_ == nullptr) << "BeginStep inside a step";
  BINARYMOS_CHECK_LT(num_submitted_ - num_awaited_, kMaxCudaStepsInFlight);
  batch_ = &batch;
  if (!status_.ok()) return;
  if (options_.time_steps) Update(driver_->StartTimer());
  Update(device_batch_.Upload(
      batch, std::max(1, device_batch_.tokens_per_block()), *driver_));
  if (device_batch_.num_moves() == batch_moves_) return;
  ForgetGraphs();
  batch_moves_ = device_batch_.num_moves();
}

void CudaBackend::SubmitStep() {
  BINARYMOS_CHECK(batch_ != nullptr) << "EndStep outside a step";
  batch_ = nullptr;
  sampler_.SubmitStep();
  if (options_.time_steps && status_.ok()) Update(driver_->StopTimer());
  const auto mark = static_cast<int>(num_submitted_++ % kMaxCudaStepsInFlight);
  if (status_.ok()) Update(driver_->PutMark(mark));
}

absl::Status CudaBackend::AwaitStep() {
  BINARYMOS_CHECK_LT(num_awaited_, num_submitted_);
  LateRead& read = LateReadAt(num_awaited_);
  const auto mark = static_cast<int>(num_awaited_++ % kMaxCudaStepsInFlight);
  if (status_.ok()) Update(driver_->AwaitMark(mark));
  sampler_.TakeStep();
  if (status_.ok() && !read.host.empty()) {
    std::memcpy(read.host.data(), read.pinned.data(), read.host.size_bytes());
  }
  read.host = {};
  return status_;
}

absl::Status CudaBackend::EndStep() {
  BINARYMOS_CHECK_EQ(num_submitted_, num_awaited_);
  SubmitStep();
  AwaitStep().IgnoreError();  // in status_
  if (options_.time_steps && status_.ok()) {
    const absl::StatusOr<double> seconds = driver_->TimerSeconds();
    Update(seconds.status());
    device_seconds_ = seconds.value_or(0);
  }
  return status_;
}

absl::Status CudaBackend::ReadLater(const ConstTensorView& tensor,
                                    std::span<float> host) {
  BINARYMOS_CHECK_EQ(tensor.shape.num_elements(),
                     static_cast<int64_t>(host.size()));
  LateRead& read = LateReadAt(num_submitted_);
  BINARYMOS_CHECK(batch_ != nullptr && read.host.empty());
  if (!status_.ok()) return status_;
  if (read.pinned.bytes() < host.size_bytes()) return ReadBack(tensor, host);
  read.host = host;
  Update(driver_->CopyToHost(read.pinned.data(), Floats(tensor),
                             host.size_bytes()));
  return status_;
}

absl::Status CudaBackend::ReadBack(const ConstTensorView& tensor,
                                   std::span<float> host) {
  const float* source = Floats(tensor);
  BINARYMOS_CHECK_EQ(tensor.shape.num_elements(),
                     static_cast<int64_t>(host.size()));
  return CopyBack(source, std::as_writable_bytes(host));
}

absl::Status CudaBackend::CopyBack(const void* device,
                                   std::span<std::byte> host) {
  if (!status_.ok() || host.empty()) return status_;
  if (read_back_.bytes() < host.size()) {
    absl::StatusOr<Buffer> buffer = driver_->AllocatePinned(host.size());
    if (!buffer.ok()) return buffer.status();
    read_back_ = *std::move(buffer);
  }
  Update(driver_->CopyToHost(read_back_.data(), device, host.size()));
  Update(driver_->Synchronize());
  if (status_.ok()) std::memcpy(host.data(), read_back_.data(), host.size());
  return status_;
}

absl::Status CudaBackend::ArgMax(const ConstTensorView& x,
                                 std::span<int32_t> ids) {
  BINARYMOS_CHECK_EQ(x.shape[0], static_cast<int64_t>(ids.size()));
  if (absl::Status status = ReserveIds(x.shape[0]); !status.ok()) return status;
  Launch(cuda::ArgMax{.logits = Floats(x),
                      .rows = x.shape[0],
                      .vocab = x.shape[1],
                      .ids = static_cast<int32_t*>(ids_.data())});
  return CopyBack(ids_.data(), std::as_writable_bytes(ids));
}

absl::Status CudaBackend::ReserveIds(int64_t rows) {
  const size_t bytes = rows * sizeof(int32_t);
  if (bytes <= ids_.bytes()) return absl::OkStatus();
  absl::StatusOr<Buffer> buffer = driver_->AllocateDevice(bytes);
  if (!buffer.ok()) return buffer.status();
  ids_ = *std::move(buffer);
  return absl::OkStatus();
}

void CudaBackend::Zero(const TensorView& tensor) {
  BINARYMOS_CHECK(tensor.device == Device::kCuda);
  if (!current_status().ok() || tensor.bytes() == 0) return;
  Update(driver_->Zero(tensor.data, tensor.bytes()));
}

const BatchView& CudaBackend::batch() const {
  BINARYMOS_CHECK(batch_ != nullptr) << "operation outside a step";
  return *batch_;
}

void CudaBackend::Repeat(const RepeatKey& key,
                         absl::FunctionRef<void()> operations) {
  const BatchView& step = batch();
  const bool worth_it = step.num_tokens() == step.num_seqs() &&
                        step.num_seqs() <= kMaxRecordedSeqs;
  if (!options_.graphs || !worth_it || !status_.ok()) return operations();
  CudaGraphs::Entry& entry =
      graphs_.Use({key, step.num_tokens(), step.num_logit_rows(),
                   RoundSplits(device_batch_.max_splits()),
                   device_batch_.tokens_per_block()});
  if (entry.uses == 1 || entry.refused) return operations();
  if (entry.graph == nullptr && !Record(operations, entry.graph)) {
    entry.refused = true;
    set_note(absl::StrCat("a step could not be recorded: ",
                          graph_status_.message()));
    return operations();
  }
  Update(driver_->Replay(*entry.graph));
}

bool CudaBackend::Record(absl::FunctionRef<void()> operations,
                         std::unique_ptr<CudaGraph>& graph) {
  graph_status_ = driver_->BeginCapture();
  if (!graph_status_.ok()) return false;
  recording_ = true;
  operations();
  recording_ = false;
  absl::StatusOr<std::unique_ptr<CudaGraph>> recorded = driver_->EndCapture();
  graph_status_.Update(recorded.status());
  if (!graph_status_.ok()) return false;
  graph = *std::move(recorded);
  return true;
}

void CudaBackend::ForgetGraphs() {
  if (graphs_.empty()) return;
  BINARYMOS_CHECK(!recording_) << "memory is allocated in a recorded step";
  Update(driver_->Synchronize());
  graphs_.Clear();
}

void CudaBackend::Launch(const cuda::Kernel& kernel) {
  if (current_status().ok()) Update(driver_->Launch(kernel));
}

void CudaBackend::Embed(const PackedLinear& table, const TensorView& out) {
  const Float16& float16 = Float16::From(table);
  BINARYMOS_CHECK(out.shape ==
                  (Shape{batch().num_tokens(), table.in_features()}));
  for (const TokenId token : batch().tokens) {
    BINARYMOS_CHECK(token >= -sampler_.max_num_seqs() &&
                    token < table.out_features())
        << "token " << token;
  }
  Launch(cuda::Embed{.table = float16.weight(),
                     .tokens = device_batch_.tokens(),
                     .sampled = sampler_.sampled(),
                     .num_tokens = batch().num_tokens(),
                     .hidden = table.in_features(),
                     .out = Floats(out)});
}

void CudaBackend::RmsNorm(const ConstTensorView& x,
                          const ConstTensorView& weight, float eps,
                          const TensorView& out) {
  BINARYMOS_CHECK(out.shape == x.shape);
  BINARYMOS_CHECK_EQ(weight.shape[0], x.shape[1]);
  Launch(cuda::RmsNorm{.x = Floats(x),
                       .weight = Halves(weight),
                       .eps = eps,
                       .rows = x.shape[0],
                       .hidden = x.shape[1],
                       .out = Floats(out)});
}

void CudaBackend::Linear(const PackedLinear& linear, const ConstTensorView& x,
                         Output output, const TensorView& y,
                         const TensorView& gate_sums) {
  BINARYMOS_CHECK_EQ(x.shape[1], linear.in_features());
  BINARYMOS_CHECK(y.shape == (Shape{x.shape[0], linear.out_features()}));
  if (x.shape[0] == 0) return;
  if (linear.kind() == LinearKind::kFloat16) {
    RunFloat16(Float16::From(linear), x, output, y);
  } else {
    RunBinaryMos(BinaryMos::From(linear), x, output, y, gate_sums);
  }
}

void CudaBackend::Linears(std::span<const LinearTask> tasks,
                          const ConstTensorView& x) {
  if (!RunFused(tasks, x.shape[0], {.x = Floats(x), .in = x.shape[1]})) {
    Backend::Linears(tasks, x);
  }
}

void CudaBackend::RmsNormAndLinears(const ConstTensorView& x,
                                    const ConstTensorView& weight, float eps,
                                    const TensorView& normed,
                                    std::span<const LinearTask> tasks) {
  BINARYMOS_CHECK_EQ(weight.shape[0], x.shape[1]);
  const cuda::FusedArgs args{
      .x = Floats(x), .norm = Halves(weight), .eps = eps, .in = x.shape[1]};
  if (!RunFused(tasks, x.shape[0], args)) {
    Backend::RmsNormAndLinears(x, weight, eps, normed, tasks);
  }
}

void CudaBackend::SwiGluAndLinear(const TensorView& gate,
                                  const ConstTensorView& up,
                                  const PackedLinear& linear, Output output,
                                  const TensorView& y,
                                  const TensorView& gate_sums) {
  BINARYMOS_CHECK(gate.shape == up.shape);
  const LinearTask task{&linear, y, gate_sums, output};
  const cuda::FusedArgs args{
      .x = Floats(gate), .up = Floats(up), .in = up.shape[1]};
  if (!RunFused({&task, 1}, up.shape[0], args)) {
    Backend::SwiGluAndLinear(gate, up, linear, output, y, gate_sums);
  }
}

void CudaBackend::RunFastFloat16(const Float16& linear,
                                 const ConstTensorView& x, Output output,
                                 const TensorView& y) {
  const int64_t rows = x.shape[0];
  const int64_t in = linear.in_features();
  const int64_t out = linear.out_features();
  // One half per activation instead of two: twice the rows fit into halves_.
  constexpr int64_t kMaxRows = 2 * kSplitRows;
  for (int64_t first = 0; first < rows; first += kMaxRows) {
    const int64_t count = std::min(kMaxRows, rows - first);
    HalfProduct product{.x = halves_.data(),
                        .weight = linear.weight(),
                        .y = Floats(y) + first * out,
                        .rows = count,
                        .in = in,
                        .out = out,
                        .accumulate = output == Output::kAccumulate};
    Launch(
        cuda::RoundToHalves{.x = Floats(x) + first * in,
                            .size = count * in,
                            .halves = static_cast<uint16_t*>(halves_.data())});
    if (linear.bias() != nullptr) {
      Launch(cuda::AddBias{.bias = linear.bias(),
                           .rows = count,
                           .out = out,
                           .accumulate = product.accumulate,
                           .y = Floats(y) + first * out});
      product.accumulate = true;
    }
    if (current_status().ok()) Update(driver_->Multiply(product));
  }
}

void CudaBackend::RunFloat16(const Float16& linear, const ConstTensorView& x,
                             Output output, const TensorView& y) {
  const int64_t rows = x.shape[0];
  if (rows > reserved_rows_) {
    if (absl::Status status = ReserveRows(rows); !status.ok()) {
      return Update(status);
    }
  }
  if (options_.fast_linear && rows > kFastRows && driver_->can_multiply()) {
    return RunFastFloat16(linear, x, output, y);
  }
  const int64_t in = linear.in_features();
  const int64_t out = linear.out_features();
  for (int64_t first = 0; first < rows; first += kSplitRows) {
    const cuda::SplitHalves split{
        .x = Floats(x) + first * in,
        .rows = std::min(kSplitRows, rows - first),
        .in = in,
        .halves = static_cast<uint16_t*>(halves_.data()),
        .scales = static_cast<float*>(half_scales_.data())};
    Launch(split);
    const cuda::Float16Args args{.halves = split.halves,
                                 .scales = split.scales,
                                 .weight = linear.weight(),
                                 .bias = linear.bias(),
                                 .rows = split.rows,
                                 .in = in,
                                 .out = out,
                                 .accumulate = output == Output::kAccumulate,
                                 .y = Floats(y) + first * out};
    if (split.rows <= cuda::kHalfMmaColumns) {
      Launch(cuda::Float16Linear{args});
    } else {
      Launch(cuda::BatchFloat16Linear{args});
    }
  }
}

bool CudaBackend::RunFused(std::span<const LinearTask> tasks, int64_t rows,
                           cuda::FusedArgs args) {
  const bool can =
      rows == 1 && options_.clusters && driver_->info().max_clusters > 0 &&
      tasks.size() <= cuda::kMaxFusedTasks &&
      std::all_of(tasks.begin(), tasks.end(), [](const LinearTask& task) {
        return task.linear->kind() == LinearKind::kBinaryMos &&
               cuda::CanFuse(BinaryMos::From(*task.linear).shape());
      });
  if (!can) return false;
  for (const LinearTask& task : tasks) {
    const auto& linear = BinaryMos::From(*task.linear);
    BINARYMOS_CHECK_EQ(args.in, linear.in_features());
    BINARYMOS_CHECK(task.y.shape == (Shape{1, linear.out_features()}));
    const bool sums = task.gate_sums && linear.num_experts() > 0;
    if (sums) {
      BINARYMOS_CHECK_EQ(task.gate_sums.shape[0], linear.num_experts());
    }
    args.tasks[args.num_tasks++] = {
        .out = linear.out_features(),
        .experts = linear.shape().experts,
        .accumulate = task.output == Output::kAccumulate,
        .signs = linear.signs(),
        .gate = linear.gate(),
        .in_scale = linear.in_scale(),
        .out_scale = linear.out_scale(),
        .bias = linear.bias(),
        .y = Floats(task.y),
        .gate_sums = sums ? Floats(task.gate_sums) : nullptr};
  }
  const int bits = options_.activation_bits;
  args.qmax = static_cast<float>((1 << (bits - 1)) - 1);
  cuda::PlanClusters(driver_->info().max_clusters, args);
  if (bits == 8) {
    Launch(cuda::FusedBinaryMos<8>{args});
  } else {
    Launch(cuda::FusedBinaryMos<16>{args});
  }
  return true;
}

void CudaBackend::RunBinaryMos(const BinaryMos& linear,
                               const ConstTensorView& x, Output output,
                               const TensorView& y,
                               const TensorView& gate_sums) {
  const int64_t rows = x.shape[0];
  const LinearTask task{&linear, y, gate_sums, output};
  if (RunFused({&task, 1}, rows,
               {.x = Floats(x), .in = linear.in_features()})) {
    return;
  }
  if (rows > reserved_rows_) {
    if (recording_) return Update(NotRecordable("more rows than reserved"));
    if (absl::Status status = ReserveRows(rows); !status.ok()) {
      return Update(status);
    }
  }
  if (options_.fast_linear && rows > kFastRows) {
    return RunFastBinaryMos(linear, x, output, y, gate_sums);
  }
  const cuda::BinaryMosShape& shape = linear.shape();
  const int bits = options_.activation_bits;
  // Columns of 8 planes: one token cannot use 12.
  const int num_planes = rows == 1 && bits > 8 ? 16 : cuda::NumPlanes(bits);
  const cuda::PrepareBinaryMos prepare{
      .input = linear.Input(x),
      .qmax = static_cast<float>((1 << (bits - 1)) - 1),
      // Few tokens: several blocks share one's slices.
      .num_parts = static_cast<int>(std::clamp<int64_t>(
          driver_->info().num_sms / rows, 1,
          cuda::CeilDiv(shape.num_slices(), cuda::PrepareBinaryMos::kWarps))),
      .layout = {rows, shape.num_slices(), num_planes},
      .planes = static_cast<uint32_t*>(planes_.data()),
      .slices = static_cast<cuda::PreparedSlice*>(slices_.data()),
      .gates = static_cast<float*>(gates_.data())};
  Launch(prepare);
  SumGates(linear, rows, gate_sums);
  Launch(MultiplyKernel({.shape = shape,
                         .signs = linear.signs(),
                         .out_scale = linear.out_scale(),
                         .bias = linear.bias(),
                         .tokens = rows,
                         .planes = prepare.planes,
                         .slices = prepare.slices,
                         .gates = prepare.gates,
                         .accumulate = output == Output::kAccumulate,
                         .y = Floats(y)},
                        num_planes, driver_->info(), options_.wgmma));
}

void CudaBackend::RunFastBinaryMos(const BinaryMos& linear,
                                   const ConstTensorView& x, Output output,
                                   const TensorView& y,
                                   const TensorView& gate_sums) {
  const int64_t rows = x.shape[0];
  // 256 halves take as much as 16 planes of 256 bits.
  const cuda::PrepareHalves prepare{
      .input = linear.Input(x),
      .tokens = rows,
      .halves = static_cast<uint16_t*>(planes_.data()),
      .scales = static_cast<float*>(slices_.data()),
      .gates = static_cast<float*>(gates_.data())};
  Launch(prepare);
  SumGates(linear, rows, gate_sums);
  Launch(FastKernel({.shape = linear.shape(),
                     .signs = linear.signs(),
                     .out_scale = linear.out_scale(),
                     .bias = linear.bias(),
                     .tokens = rows,
                     .halves = prepare.halves,
                     .scales = prepare.scales,
                     .gates = prepare.gates,
                     .accumulate = output == Output::kAccumulate,
                     .y = Floats(y)},
                    driver_->info().num_sms));
}

void CudaBackend::SumGates(const BinaryMos& linear, int64_t rows,
                           const TensorView& sums) {
  if (!sums || linear.num_experts() == 0) return;
  BINARYMOS_CHECK_EQ(sums.shape[0], linear.num_experts());
  Launch(cuda::SumGates{.gates = static_cast<const float*>(gates_.data()),
                        .tokens = rows,
                        .experts = linear.shape().experts,
                        .sums = Floats(sums)});
}

void CudaBackend::RopeAndWriteKv(const AttentionShape& shape,
                                 const RopeTable& rope, const TensorView& q,
                                 const TensorView& k, const ConstTensorView& v,
                                 const KvLayer& kv) {
  BINARYMOS_CHECK_EQ(q.shape[0], batch().num_tokens());
  switch (TypeOf(kv)) {
    case DType::kF16:
      return Launch(
          RopeKernel<uint16_t>(shape, device_batch_, rope, q, k, v, kv));
    case DType::kF8E4M3:
      return Launch(
          RopeKernel<uint8_t>(shape, device_batch_, rope, q, k, v, kv));
    default:
      BINARYMOS_CHECK(TypeOf(kv) == DType::kF32) << Name(TypeOf(kv));
      return Launch(RopeKernel<float>(shape, device_batch_, rope, q, k, v, kv));
  }
}

const CudaBatch& CudaBackend::BatchFor(int tokens_per_block) {
  if (tokens_per_block != device_batch_.tokens_per_block() && status_.ok()) {
    if (recording_) {
      Update(NotRecordable("attention of different shapes"));
      return device_batch_;
    }
    // The first step of a model, and no other.
    Update(driver_->Synchronize());
    if (status_.ok()) {
      Update(device_batch_.Upload(batch(), tokens_per_block, *driver_));
    }
  }
  return device_batch_;
}

void CudaBackend::Attention(const AttentionShape& shape,
                            const ConstTensorView& q, const KvLayer& kv,
                            const TensorView& out) {
  Attend(shape, q, kv, out, {});
}

void CudaBackend::RopeAndAttention(const AttentionShape& shape,
                                   const RopeTable& rope, const TensorView& q,
                                   const TensorView& k,
                                   const ConstTensorView& v, const KvLayer& kv,
                                   const TensorView& out) {
  if (batch().num_tokens() != batch().num_seqs()) {
    return Backend::RopeAndAttention(shape, rope, q, k, v, kv, out);
  }
  BINARYMOS_CHECK_EQ(k.shape[0], batch().num_tokens());
  Attend(shape, q, kv, out,
         {.new_keys = Floats(k),
          .new_values = Floats(v),
          .kv_slots = device_batch_.kv_slots(),
          .cos = Floats(rope.cos),
          .sin = Floats(rope.sin)});
}

void CudaBackend::Attend(const AttentionShape& shape, const ConstTensorView& q,
                         const KvLayer& kv, const TensorView& out,
                         cuda::AttentionArgs args) {
  const int64_t tokens = batch().num_tokens();
  BINARYMOS_CHECK_EQ(q.shape[0], tokens);
  BINARYMOS_CHECK_EQ(shape.num_heads % shape.num_kv_heads, 0);
  const AttentionKind& kind = KindOf(kv, shape.head_dim);
  const CudaBatch& batch =
      BatchFor(kind.tokens_per_block(shape.num_heads / shape.num_kv_heads));
  args.num_heads = shape.num_heads;
  args.num_kv_heads = shape.num_kv_heads;
  args.head_dim = shape.head_dim;
  args.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  args.num_blocks = batch.num_query_blocks();
  args.blocks = batch.query_blocks();
  args.tokens_per_block = batch.max_block_tokens();
  args.positions = batch.positions();
  args.block_tables = batch.block_tables();
  args.block_table_starts = batch.block_table_starts();
  args.q = Floats(q);
  args.out = Floats(out);
  if (args.kv_slots != nullptr) args.kv_slots = batch.kv_slots();
  // Few queries with long contexts: a block per split, merged afterwards.
  const int splits = RoundSplits(batch.max_splits());
  const size_t state_bytes = tokens * shape.num_heads * splits *
                             (shape.head_dim + int64_t{2}) * sizeof(float);
  const bool apart =
      splits > 1 && state_bytes <= attention_states_.bytes() &&
      2 * args.num_blocks * shape.num_kv_heads < 3 * driver_->info().num_sms;
  if (apart) {
    args.num_splits = splits;
    args.states = static_cast<float*>(attention_states_.data());
  }
  const size_t max_shared = driver_->info().max_shared_bytes;
  const cuda::Kernel kernel = kind.kernel(args, kv, max_shared);
  const size_t shared = SharedBytes(kernel);
  if (shape.head_dim > kind.max_head_dim || shared > max_shared) {
    const bool e4m3 = TypeOf(kv) == DType::kF8E4M3;
    return Update(absl::UnimplementedError(absl::StrCat(
        "attention with head_dim ", shape.head_dim, ", ",
        shape.num_heads / shape.num_kv_heads,
        " heads per KV head and a cache of ", Name(kv.keys.dtype), " takes ",
        shared, " bytes of shared memory; this device has ", max_shared,
        " and the kernel is for head_dim up to ", kind.max_head_dim, "; use ",
        e4m3 ? "--kv-cache-dtype=f16 or " : "", "--device=cpu")));
  }
  Launch(kernel);
  if (apart) Launch(cuda::MergeAttention{args, tokens});
}

void CudaBackend::SwiGlu(const ConstTensorView& gate, const ConstTensorView& up,
                         const TensorView& out) {
  BINARYMOS_CHECK(gate.shape == up.shape && out.shape == up.shape);
  Launch(cuda::SwiGlu{.gate = Floats(gate),
                      .up = Floats(up),
                      .size = gate.shape.num_elements(),
                      .out = Floats(out)});
}

void CudaBackend::GatherLogitRows(const ConstTensorView& x,
                                  const TensorView& out) {
  BINARYMOS_CHECK(out.shape == (Shape{batch().num_logit_rows(), x.shape[1]}));
  for (const int32_t row : batch().logit_rows) {
    BINARYMOS_CHECK(row >= 0 && row < x.shape[0]) << "row " << row;
  }
  Launch(cuda::GatherRows{.x = Floats(x),
                          .rows = device_batch_.logit_rows(),
                          .num_rows = batch().num_logit_rows(),
                          .hidden = x.shape[1],
                          .out = Floats(out)});
}

}  // namespace binarymos
