// What the CUDA backend asks of a device: memory, launches, and what it does
// when the device fails. Its arithmetic is compared in
// tests/engine/backend/backend_test.cc.
#include "engine/backend/cuda_backend.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/cuda/emulated_driver.h"
#include "tests/engine/kernels/kernel_test_util.h"

namespace binarymos {
namespace {

using testing::HasSubstr;

constexpr size_t kMiB = size_t{1} << 20;

template <typename T>
T Get(absl::StatusOr<T> value) {
  BINARYMOS_CHECK(value.ok()) << value.status().ToString();
  return *std::move(value);
}

// The positions [first, first + count) of one sequence.
struct Batch {
  Batch(int first, int count) {
    for (int p = first; p < first + count; ++p) {
      tokens.push_back(p % 5);
      positions.push_back(p);
      slots.push_back(p);
    }
    starts = {0, count};
    context_lens = {first + count};
    for (int i = 0; i * kBlockSize < first + count; ++i) tables.push_back(i);
    table_starts = {0, static_cast<int32_t>(tables.size())};
    logit_rows = {count - 1};
    view = {tokens,       positions, slots,        starts,
            context_lens, tables,    table_starts, logit_rows};
  }

  std::vector<int32_t> tokens, positions, starts, context_lens, tables,
      table_starts, logit_rows;
  std::vector<int64_t> slots;
  BatchView view;
};

class CudaBackendTest : public testing::Test {
 protected:
  std::unique_ptr<CudaBackend> Create(CudaBackendOptions options = {}) {
    return std::make_unique<CudaBackend>(
        std::make_unique<EmulatedDriver>(&device_), options);
  }

  // A BinaryMoS layer of random bits.
  std::unique_ptr<PackedLinear> PackLayer(Backend& backend, int64_t in,
                                          int64_t out) {
    std::vector<uint8_t> sign(in * out / 8, 0x5a);
    const auto gate = RandomHalves(4 * in, 1, 0.1f);
    const auto in_scale = RandomHalves(4 * in, 2);
    const auto out_scale = RandomHalves(4 * out, 3);
    LinearTensors tensors{.in_features = in, .out_features = out};
    tensors.num_experts = 4;
    tensors.sign = {sign.data(), DType::kU8, Shape{out, in / 8}};
    tensors.gate = View(gate, {4, in});
    tensors.in_scale = View(in_scale, {4, in});
    tensors.out_scale = View(out_scale, {4, out});
    return Get(backend.Pack(tensors));
  }

  EmulatedDevice device_;
};

TEST_F(CudaBackendTest, RefusesLinearsOfInt8) {
  const auto backend = Create();
  EXPECT_FALSE(backend->Supports(LinearKind::kInt8));
  EXPECT_TRUE(backend->Supports(LinearKind::kFloat16));
  const auto weight = RandomHalves(16 * 16, 1);
  LinearTensors tensors{
      .kind = LinearKind::kInt8, .in_features = 16, .out_features = 16};
  tensors.weight = View(weight, {16, 16});
  EXPECT_TRUE(absl::IsUnimplemented(backend->Pack(tensors).status()));
}

TEST_F(CudaBackendTest, DescribesItsDevice) {
  EXPECT_EQ(Create()->description(), "cuda:0 (emulated, compute 9.0)");
}

TEST_F(CudaBackendTest, AvailableMemoryLeavesToOthersWhatIsTheirs) {
  device_.total_memory = 1000 * kMiB;
  const auto backend = Create({.memory_utilization = 0.75});
  EXPECT_EQ(Get(backend->AvailableMemory()), 750 * kMiB - 64 * kMiB);
  device_.used_memory = 500 * kMiB;
  EXPECT_EQ(Get(backend->AvailableMemory()), 250 * kMiB - 64 * kMiB);
  device_.used_memory = 900 * kMiB;
  EXPECT_EQ(Get(backend->AvailableMemory()), 0u);
}

TEST_F(CudaBackendTest, LoadingFailsForWantOfMemoryAndSaysHowMuch) {
  device_.total_memory = 1 * kMiB;
  const auto backend = Create();
  const auto tensor = backend->Allocate(DType::kF32, Shape{1024, 1024});
  EXPECT_TRUE(absl::IsResourceExhausted(tensor.status()));
  EXPECT_THAT(tensor.status().message(), HasSubstr("4194304 bytes of device"));
  EXPECT_TRUE(absl::IsResourceExhausted(backend->Reserve(16, 1)));
}

TEST_F(CudaBackendTest, TooManyExpertsAreRefused) {
  std::vector<uint16_t> scale(65 * 8);
  std::vector<uint8_t> sign(8);
  LinearTensors tensors{.in_features = 8, .out_features = 8};
  tensors.num_experts = 65;
  tensors.sign = {sign.data(), DType::kU8, Shape{8, 1}};
  tensors.gate = tensors.in_scale = tensors.out_scale = View(scale, {65, 8});
  const auto packed = Create()->Pack(tensors);
  EXPECT_TRUE(absl::IsInvalidArgument(packed.status()));
  EXPECT_THAT(packed.status().message(), HasSubstr("65 experts"));
}

TEST_F(CudaBackendTest, StepsWithinTheReservedSizeDoNotAllocate) {
  const auto backend = Create();
  const auto layer = PackLayer(*backend, 64, 48);
  ASSERT_TRUE(backend->Reserve(40, 4).ok());
  const Tensor x = Get(backend->Allocate(DType::kF32, Shape{40, 64}));
  const Tensor y = Get(backend->Allocate(DType::kF32, Shape{40, 48}));
  std::vector<float> host(48);
  const auto step = [&](int count) {
    const Batch batch(0, count);
    backend->BeginStep(batch.view);
    backend->Linear(*layer, x.view().FirstRows(count), Backend::Output::kStore,
                    y.view().FirstRows(count), {});
    EXPECT_TRUE(backend->ReadBack(y.view().FirstRows(1), std::span(host)).ok());
    EXPECT_TRUE(backend->EndStep().ok());
  };
  step(40);
  const int before = device_.num_allocations;
  for (const int count : {1, 2, 39, 40}) step(count);
  EXPECT_EQ(device_.num_allocations, before);
  step(41 - 1);
  EXPECT_EQ(device_.num_allocations, before);
}

TEST_F(CudaBackendTest, ReadsTheDevicesClockAroundStepsThatItTimes) {
  const std::unique_ptr<CudaBackend> timed = Create({.time_steps = true});
  const std::unique_ptr<CudaBackend> untimed = Create();
  for (CudaBackend* backend : {timed.get(), untimed.get()}) {
    const bool times = backend == timed.get();
    const Tensor x = Get(backend->Allocate(DType::kF32, {1, 64}));
    // Recorded in the second step, replayed in the third.
    for (int step = 0; step < 3; ++step) {
      const BatchView empty;
      backend->BeginStep(empty);
      backend->Repeat({&x}, [&] {
        for (int i = 0; i < 5; ++i) {
          backend->SwiGlu(x.view(), x.view(), x.view());
        }
      });
      EXPECT_TRUE(backend->EndStep().ok());
      EXPECT_DOUBLE_EQ(backend->device_seconds(), times ? 5e-6 : 0);
    }
    const BatchView empty;
    backend->BeginStep(empty);
    EXPECT_TRUE(backend->EndStep().ok());
    EXPECT_EQ(backend->device_seconds(), 0);
  }
  EXPECT_GT(device_.num_replays, 0);
}

TEST_F(CudaBackendTest, LinearsOfOneTokenThatShareTheirInputAreOneLaunch) {
  const auto backend = Create();
  const int64_t outs[] = {48, 96, 33};
  std::vector<std::unique_ptr<PackedLinear>> layers;
  std::vector<Tensor> together, alone;
  for (const int64_t out : outs) {
    layers.push_back(PackLayer(*backend, 520, out));
    for (auto* ys : {&together, &alone}) {
      ys->push_back(Get(backend->Allocate(DType::kF32, Shape{2, out})));
    }
  }
  const auto inputs = RandomFloats(2 * 520, 5);
  const Tensor x = Get(backend->Upload(View(inputs, {2, 520})));
  ASSERT_TRUE(backend->Reserve(2, 1).ok());
  const BatchView empty;
  for (const int rows : {1, 2}) {
    SCOPED_TRACE(rows);
    std::vector<Backend::LinearTask> tasks;
    for (size_t i = 0; i < layers.size(); ++i) {
      tasks.push_back(
          {layers[i].get(), together[i].view().FirstRows(rows), {}});
    }
    const TensorView input = x.view().FirstRows(rows);
    backend->BeginStep(empty);
    const int before = device_.num_launches;
    backend->Linears(tasks, input);
    EXPECT_EQ(device_.num_launches - before, rows == 1 ? 1 : 6);
    for (size_t i = 0; i < layers.size(); ++i) {
      backend->Linear(*layers[i], input, Backend::Output::kStore,
                      alone[i].view().FirstRows(rows), {});
      std::vector<float> a(rows * outs[i]), b(rows * outs[i]);
      EXPECT_TRUE(backend->ReadBack(tasks[i].y, std::span(a)).ok());
      EXPECT_TRUE(
          backend->ReadBack(alone[i].view().FirstRows(rows), std::span(b))
              .ok());
      EXPECT_TRUE(SameBits(a, b)) << "layer " << i;
    }
    EXPECT_TRUE(backend->EndStep().ok());
  }
}

// Groups without a slice, of one, of several; both orders of threads.
TEST_F(CudaBackendTest, ANormAndLinearsOfOneTokenAreOneLaunch) {
  for (const int64_t in : {520, 2600, 11008}) {
    for (const EmulatedOrder order :
         {EmulatedOrder::kAscending, EmulatedOrder::kDescending}) {
      device_.order = order;
      const auto backend = Create();
      const auto layer = PackLayer(*backend, in, 70);
      const auto other = PackLayer(*backend, in, 33);
      auto inputs = RandomFloats(3 * in, 5);
      for (int64_t k = 0; k < in; ++k) inputs[k] *= 300.0f;
      inputs[3 * in - 1] = std::numeric_limits<float>::quiet_NaN();
      const auto weights = RandomHalves(in, 6);
      const Tensor x = Get(backend->Upload(View(inputs, {3, in})));
      const Tensor weight = Get(backend->Upload(View(weights, {in})));
      const Tensor normed = Get(backend->Allocate(DType::kF32, {1, in}));
      const Tensor y = Get(backend->Allocate(DType::kF32, {4, 70}));
      const auto out = [&](int row, int64_t width) {
        TensorView view = y.view().FirstRows(1);
        view.data = y.view().Row(row).data;
        view.shape = Shape{1, width};
        return view;
      };
      const BatchView empty;
      for (int token = 0; token < 3; ++token) {
        SCOPED_TRACE(testing::Message() << in << ", token " << token);
        TensorView row = x.view().FirstRows(1);
        row.data = x.view().Row(token).data;
        backend->BeginStep(empty);
        backend->RmsNorm(row, weight.view(), 1e-5f, normed.view());
        const Backend::LinearTask apart[] = {{layer.get(), out(0, 70), {}},
                                             {other.get(), out(1, 33), {}}};
        backend->Linears(apart, normed.view());
        const int before = device_.num_launches;
        const Backend::LinearTask fused[] = {{layer.get(), out(2, 70), {}},
                                             {other.get(), out(3, 33), {}}};
        backend->RmsNormAndLinears(row, weight.view(), 1e-5f, normed.view(),
                                   fused);
        EXPECT_EQ(device_.num_launches - before, 1);
        std::vector<float> ys(4 * 70);
        EXPECT_TRUE(backend->ReadBack(y.view(), std::span(ys)).ok());
        EXPECT_TRUE(backend->EndStep().ok());
        const auto half = [&](int begin) {
          return std::vector<float>(ys.begin() + begin,
                                    ys.begin() + begin + 70 + 33);
        };
        EXPECT_TRUE(SameBits(half(140), half(0)));
        EXPECT_EQ(std::isnan(ys[0]), token == 2);
      }
    }
  }
}

TEST_F(CudaBackendTest, SwiGluAndALinearOfOneTokenAreOneLaunch) {
  const auto backend = Create();
  for (const int64_t in : {520, 11008}) {
    const auto layer = PackLayer(*backend, in, 70);
    const auto gates = RandomFloats(in, 5), ups = RandomFloats(in, 6),
               before = RandomFloats(70, 7);
    const Tensor gate = Get(backend->Upload(View(gates, {1, in})));
    const Tensor up = Get(backend->Upload(View(ups, {1, in})));
    const Tensor product = Get(backend->Allocate(DType::kF32, {1, in}));
    const Tensor apart = Get(backend->Upload(View(before, {1, 70})));
    const Tensor fused = Get(backend->Upload(View(before, {1, 70})));
    const BatchView empty;
    backend->BeginStep(empty);
    backend->SwiGlu(gate.view(), up.view(), product.view());
    backend->Linear(*layer, product.view(), Backend::Output::kAccumulate,
                    apart.view(), {});
    const int launches = device_.num_launches;
    backend->SwiGluAndLinear(gate.view(), up.view(), *layer,
                             Backend::Output::kAccumulate, fused.view(), {});
    EXPECT_EQ(device_.num_launches - launches, 1);
    std::vector<float> a(70), b(70);
    EXPECT_TRUE(backend->ReadBack(apart.view(), std::span(a)).ok());
    EXPECT_TRUE(backend->ReadBack(fused.view(), std::span(b)).ok());
    EXPECT_TRUE(backend->EndStep().ok());
    EXPECT_TRUE(SameBits(a, b));
    EXPECT_NE(a, before);
  }
}

TEST_F(CudaBackendTest, WarpgroupsMultiplyWhereWantedAndThereWithTheSameBits) {
  const auto inputs = RandomFloats(9 * 520, 5);
  const auto run = [&](bool wanted, int rows) {
    device_.num_warpgroup_linears = 0;
    const auto backend = Create({.wgmma = wanted});
    const auto layer = PackLayer(*backend, 520, 70);
    BINARYMOS_CHECK(backend->Reserve(9, 1).ok());
    const Tensor x = Get(backend->Upload(View(inputs, {9, 520})));
    const Tensor y = Get(backend->Allocate(DType::kF32, Shape{rows, 70}));
    const BatchView empty;
    backend->BeginStep(empty);
    backend->Linear(*layer, x.view().FirstRows(rows), Backend::Output::kStore,
                    y.view(), {});
    std::vector<float> result(rows * 70);
    EXPECT_TRUE(backend->ReadBack(y.view(), std::span(result)).ok());
    EXPECT_TRUE(backend->EndStep().ok());
    return result;
  };
  for (const int num_sms : {1, 132}) {  // wide blocks, narrow ones
    device_.num_sms = num_sms;
    for (const int rows : {1, 2, 9}) {
      SCOPED_TRACE(rows);
      const auto expected = run(false, rows);
      EXPECT_EQ(device_.num_warpgroup_linears, 0);
      EXPECT_TRUE(SameBits(run(true, rows), expected));
      EXPECT_EQ(device_.num_warpgroup_linears, rows > 1 ? 1 : 0);
    }
  }
  run(true, 2);
  EXPECT_EQ(device_.num_warpgroup_linears, 1);
  device_.max_shared_bytes = 48 << 10;
  run(true, 2);
  EXPECT_EQ(device_.num_warpgroup_linears, 0);
  device_.max_shared_bytes = 227 << 10;
  device_.has_wgmma = false;
  run(true, 2);
  EXPECT_EQ(device_.num_warpgroup_linears, 0);
}

TEST_F(CudaBackendTest, FastLinearsTakeTheMemoryThatExactOnesReserve) {
  const auto backend = Create({.fast_linear = true});
  const auto layer = PackLayer(*backend, 264, 48);
  ASSERT_TRUE(backend->Reserve(130, 4).ok());
  const Tensor x = Get(backend->Allocate(DType::kF32, Shape{130, 264}));
  const Tensor y = Get(backend->Allocate(DType::kF32, Shape{130, 48}));
  const int before = device_.num_allocations;
  for (const int count : {1, 64, 65, 130}) {
    const Batch batch(0, count);
    backend->BeginStep(batch.view);
    backend->Linear(*layer, x.view().FirstRows(count), Backend::Output::kStore,
                    y.view().FirstRows(count), {});
    EXPECT_TRUE(backend->EndStep().ok());
    EXPECT_EQ(device_.num_fast_linears, count > 64 ? 1 : 0);
    device_.num_fast_linears = 0;
  }
  EXPECT_EQ(device_.num_allocations, before);
}

TEST_F(CudaBackendTest, FastLinearsHaveWiderBlocksWhereAllAreBusy) {
  device_.num_sms = 2;
  const auto backend = Create({.fast_linear = true});
  const auto rows_of_block = [&](int64_t out, int tokens) {
    const auto layer = PackLayer(*backend, 8, out);
    BINARYMOS_CHECK(backend->Reserve(tokens, 1).ok());
    const Tensor x = Get(backend->Allocate(DType::kF32, Shape{tokens, 8}));
    const Tensor y = Get(backend->Allocate(DType::kF32, Shape{tokens, out}));
    const BatchView empty;
    backend->BeginStep(empty);
    backend->Linear(*layer, x.view(), Backend::Output::kStore, y.view(), {});
    EXPECT_TRUE(backend->EndStep().ok());
    return device_.rows_of_fast_block;
  };
  EXPECT_EQ(rows_of_block(64, 65), 64);
  EXPECT_EQ(rows_of_block(256, 65), 128);
  EXPECT_EQ(rows_of_block(512, 65), 256);
  EXPECT_EQ(rows_of_block(256, 256), 256);
}

// With a bias, added to what is there or not; in two parts.
TEST_F(CudaBackendTest, FastFloat16LinearsUseTheLibraryWhereThereIsOne) {
  constexpr int kRows = 1030, kIn = 24, kOut = 5;
  const auto weight = RandomHalves(kOut * kIn, 1), bias = RandomHalves(kOut, 2);
  const auto x = RandomFloats(kRows * kIn, 3);
  const auto before = RandomFloats(kRows * kOut, 4);
  LinearTensors tensors{
      .kind = LinearKind::kFloat16, .in_features = kIn, .out_features = kOut};
  tensors.weight = View(weight, {kOut, kIn});
  tensors.bias = View(bias, {kOut});
  for (const auto output :
       {Backend::Output::kStore, Backend::Output::kAccumulate}) {
    std::vector<std::vector<float>> results;
    for (const bool can_multiply : {false, true}) {
      device_.can_multiply = can_multiply;
      device_.num_products = 0;
      const auto backend = Create({.fast_linear = true});
      const auto layer = Get(backend->Pack(tensors));
      ASSERT_TRUE(backend->Reserve(kRows, 1).ok());
      const Tensor input = Get(backend->Upload(View(x, {kRows, kIn})));
      const Tensor y = Get(backend->Upload(View(before, {kRows, kOut})));
      const int allocations = device_.num_allocations;
      const BatchView empty;
      backend->BeginStep(empty);
      backend->Linear(*layer, input.view(), output, y.view(), {});
      EXPECT_EQ(device_.num_allocations, allocations);
      results.emplace_back(before.size());
      EXPECT_TRUE(backend->ReadBack(y.view(), std::span(results.back())).ok());
      EXPECT_TRUE(backend->EndStep().ok());
      EXPECT_EQ(device_.num_products, can_multiply ? 2 : 0);
    }
    double error = 0, norm = 0;
    for (size_t i = 0; i < before.size(); ++i) {
      error += std::pow(double{results[1][i]} - results[0][i], 2);
      norm += std::pow(results[0][i], 2);
    }
    EXPECT_LT(std::sqrt(error / norm), 5e-4);
  }
}

TEST_F(CudaBackendTest, AFailureSkipsTheRestAndIsFinal) {
  const auto backend = Create();
  const auto layer = PackLayer(*backend, 64, 48);
  ASSERT_TRUE(backend->Reserve(8, 1).ok());
  const Tensor x = Get(backend->Allocate(DType::kF32, Shape{2, 64}));
  const Tensor y = Get(backend->Allocate(DType::kF32, Shape{2, 48}));
  const Batch batch(0, 2);
  const auto linear = [&] {
    backend->Linear(*layer, x.view(), Backend::Output::kStore, y.view(), {});
  };
  backend->BeginStep(batch.view);
  linear();
  EXPECT_TRUE(backend->EndStep().ok());

  device_.launches_until_failure = 1;
  backend->BeginStep(batch.view);
  linear();
  const int launches = device_.num_launches;
  linear();
  linear();
  EXPECT_EQ(device_.num_launches, launches);
  std::vector<float> host(96, 5.0f);
  EXPECT_FALSE(backend->ReadBack(y.view(), std::span(host)).ok());
  EXPECT_EQ(host[0], 5.0f);
  const absl::Status status = backend->EndStep();
  EXPECT_TRUE(absl::IsInternal(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("illegal memory access"));

  device_.launches_until_failure = -1;  // as if it had healed: it has not
  backend->BeginStep(batch.view);
  linear();
  EXPECT_EQ(device_.num_launches, launches);
  EXPECT_EQ(backend->EndStep(), status);
}

// Attention over `context` positions of a random cache, for the last `count`.
std::vector<float> Attend(CudaBackend& backend, const AttentionShape& shape,
                          int context, int count) {
  const Batch batch(context - count, count);
  const int64_t width = int64_t{shape.num_heads} * shape.head_dim;
  const int64_t blocks = (context + kBlockSize - 1) / kBlockSize;
  const Shape cache{blocks, shape.num_kv_heads, kBlockSize, shape.head_dim};
  const auto keys = RandomHalves(cache.num_elements(), 1);
  const auto values = RandomHalves(cache.num_elements(), 2);
  const auto q = RandomFloats(count * width, 3);
  const Tensor device_keys = Get(backend.Upload(View(keys, cache)));
  const Tensor device_values = Get(backend.Upload(View(values, cache)));
  const Tensor device_q = Get(backend.Upload(View(q, {count, width})));
  const Tensor out = Get(backend.Allocate(DType::kF32, Shape{count, width}));
  BINARYMOS_CHECK(backend.Reserve(count, 1).ok());
  backend.BeginStep(batch.view);
  backend.Attention(shape, device_q.view(),
                    {device_keys.view(), device_values.view()}, out.view());
  std::vector<float> host(count * width);
  BINARYMOS_CHECK(backend.ReadBack(out.view(), std::span(host)).ok());
  BINARYMOS_CHECK(backend.EndStep().ok());
  return host;
}

TEST_F(CudaBackendTest, FewLongQueriesUseABlockPerSplitAndGiveTheSameBits) {
  const AttentionShape shape{.num_heads = 4, .num_kv_heads = 2, .head_dim = 16};
  const auto apart = Attend(*Create(), shape, 700, 3);
  EXPECT_EQ(device_.num_merges, 1);
  device_.num_sms = 1;
  const auto whole = Attend(*Create(), shape, 700, 3);
  EXPECT_EQ(device_.num_merges, 1);
  EXPECT_TRUE(SameBits(apart, whole));
}

TEST_F(CudaBackendTest, ShortContextsAreNotSplit) {
  Attend(*Create(), {.num_heads = 1, .num_kv_heads = 1, .head_dim = 16}, 256,
         1);
  EXPECT_EQ(device_.num_merges, 0);
}

// Of attention over one position.
absl::Status AttendWith(CudaBackend& backend, DType kv, int head_dim) {
  const Batch batch(0, 1);
  const Tensor q = Get(backend.Allocate(DType::kF32, Shape{1, head_dim}));
  const Tensor cache =
      Get(backend.Allocate(kv, Shape{1, 1, kBlockSize, head_dim}));
  backend.BeginStep(batch.view);
  backend.Attention({.num_heads = 1, .num_kv_heads = 1, .head_dim = head_dim},
                    q.view(), {cache.view(), cache.view()}, q.view());
  return backend.EndStep();
}

TEST_F(CudaBackendTest, HeadsThatDoNotFitSharedMemoryAreRefusedWithAReason) {
  device_.max_shared_bytes = 99 << 10;
  const absl::Status status = AttendWith(*Create(), DType::kF16, 512);
  EXPECT_TRUE(absl::IsUnimplemented(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("head_dim 512"));
}

TEST_F(CudaBackendTest, LongHeadsInE4m3AreRefusedAndF16IsNamed) {
  EXPECT_TRUE(AttendWith(*Create(), DType::kF8E4M3, 128).ok());
  const absl::Status status = AttendWith(*Create(), DType::kF8E4M3, 130);
  EXPECT_TRUE(absl::IsUnimplemented(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("head_dim up to 128"));
  EXPECT_THAT(status.message(), HasSubstr("--kv-cache-dtype=f16"));
}

// A decoder layer in miniature, its batch in device memory only.
class MiniDecoder {
 public:
  static constexpr AttentionShape kShape{
      .num_heads = 4, .num_kv_heads = 2, .head_dim = 16};
  static constexpr int kMaxPositions = 1100, kMaxSeqs = 3, kWidth = 64;

  explicit MiniDecoder(std::unique_ptr<CudaBackend> backend)
      : backend_(std::move(backend)) {
    const auto table = RandomHalves(5 * kWidth, 1);
    LinearTensors embed{
        .kind = LinearKind::kFloat16, .in_features = kWidth, .out_features = 5};
    embed.weight = View(table, {5, kWidth});
    embed_ = Get(backend_->Pack(embed));
    const auto angles = RandomFloats(kMaxPositions * 8, 2);
    angles_ = Get(backend_->Upload(View(angles, {kMaxPositions, 8})));
    const Shape cache{kMaxSeqs * kBlocksPerSeq, 2, kBlockSize, 16};
    const auto cells = RandomHalves(cache.num_elements(), 3);
    keys_ = Get(backend_->Upload(View(cells, cache)));
    values_ = Get(backend_->Upload(View(cells, cache)));
    x_ = Get(backend_->Allocate(DType::kF32, Shape{kMaxSeqs, kWidth}));
    out_ = Get(backend_->Allocate(DType::kF32, Shape{kMaxSeqs, kWidth}));
    BINARYMOS_CHECK(backend_->Reserve(kMaxSeqs, kMaxSeqs).ok());
    // The backend learns the shape of the attention.
    Step({0, 0, 0});
    num_calls_ = 0;
  }

  // A token at each position, a sequence each.
  std::vector<float> Step(const std::vector<int>& positions) {
    const auto count = static_cast<int64_t>(positions.size());
    Batch batch(0, 0);
    batch.starts.clear();
    batch.context_lens.clear();
    batch.table_starts.resize(1);
    for (int s = 0; s < count; ++s) {
      const int p = positions[s];
      batch.tokens.push_back((p + s) % 5);
      batch.positions.push_back(p);
      batch.starts.push_back(s);
      batch.context_lens.push_back(p + 1);
      const int first = s * kBlocksPerSeq;
      for (int i = 0; i * kBlockSize <= p; ++i)
        batch.tables.push_back(first + i);
      batch.slots.push_back(first * kBlockSize + p);
      batch.table_starts.push_back(static_cast<int32_t>(batch.tables.size()));
    }
    batch.starts.push_back(static_cast<int32_t>(count));
    const BatchView view{
        batch.tokens,       batch.positions, batch.slots,        batch.starts,
        batch.context_lens, batch.tables,    batch.table_starts, {}};
    const TensorView x = x_.view().FirstRows(count);
    const TensorView out = out_.view().FirstRows(count);
    TensorView kv = x;  // its first half: 2 heads of 16
    kv.shape = Shape{count, kWidth / 2};
    backend_->BeginStep(view);
    backend_->Repeat({this}, [&] {
      ++num_calls_;
      backend_->Zero(out);
      backend_->Embed(*embed_, x);
      backend_->RopeAndAttention(kShape, {angles_.view(), angles_.view()}, x,
                                 kv, kv, {keys_.view(), values_.view()}, out);
    });
    std::vector<float> host(count * kWidth);
    EXPECT_TRUE(backend_->ReadBack(out, std::span(host)).ok());
    EXPECT_TRUE(backend_->EndStep().ok());
    return host;
  }

  CudaBackend& backend() { return *backend_; }
  int num_calls() const { return num_calls_; }

 private:
  static constexpr int kBlocksPerSeq = (kMaxPositions + 15) / 16;

  std::unique_ptr<CudaBackend> backend_;
  std::unique_ptr<PackedLinear> embed_;
  Tensor angles_, keys_, values_, x_, out_;
  int num_calls_ = 0;
};

TEST_F(CudaBackendTest,
       AStepOfOneShapeIsRecordedOnceAndReplayedWithTheSameBits) {
  MiniDecoder graphs(Create());
  EmulatedDevice other;
  MiniDecoder plain(
      std::make_unique<CudaBackend>(std::make_unique<EmulatedDriver>(&other),
                                    CudaBackendOptions{.graphs = false}));
  for (const int p : {3, 4, 200, 255, 17}) {
    EXPECT_TRUE(
        SameBits(graphs.Step({p, 2 * p % 256}), plain.Step({p, 2 * p % 256})))
        << p;
  }
  EXPECT_EQ(device_.num_captures, 1);
  EXPECT_EQ(device_.num_replays, 4);
  EXPECT_EQ(graphs.num_calls(), 2);
  EXPECT_EQ(other.num_captures, 0);
  EXPECT_TRUE(graphs.backend().graph_status().ok());
}

TEST_F(CudaBackendTest,
       AReplayedStepCopiesOnceWaitsForItsResultAndAllocatesNot) {
  MiniDecoder decoder(Create());
  for (int p = 0; p < 3; ++p) decoder.Step({p, p});
  const int allocations = device_.num_allocations;
  const int copies = device_.num_copies_to_device;
  const int waits = device_.num_waits;
  const int mark_waits = device_.num_mark_waits;
  const int launches = device_.num_launches;
  for (int p = 3; p < 100; ++p) decoder.Step({p, p});
  EXPECT_EQ(device_.num_allocations, allocations);
  EXPECT_EQ(device_.num_copies_to_device - copies, 97);
  EXPECT_EQ(device_.num_waits - waits, 97);            // ReadBack
  EXPECT_EQ(device_.num_mark_waits - mark_waits, 97);  // EndStep
  EXPECT_EQ(device_.num_launches, launches);
}

TEST_F(CudaBackendTest, AnotherShapeIsRecordedAnew) {
  MiniDecoder graphs(Create());
  EmulatedDevice other;
  MiniDecoder plain(
      std::make_unique<CudaBackend>(std::make_unique<EmulatedDriver>(&other),
                                    CudaBackendOptions{.graphs = false}));
  const auto expect_same = [&](const std::vector<int>& positions) {
    EXPECT_TRUE(SameBits(graphs.Step(positions), plain.Step(positions)));
  };
  const struct {
    std::vector<int> positions;
    int captures;
  } steps[] = {{{5}, 0},         {{6}, 1},       {{5, 6}, 1},
               {{6, 7}, 2},      {{255, 7}, 2},  {{256, 7}, 2},
               {{257, 8}, 3},    {{3, 500}, 3},   // still two splits
               {{600, 4}, 3},    {{1023, 4}, 4},  // three and four: one bucket
               {{800, 1000}, 4}, {{7}, 4},       {{8, 9}, 4}};
  for (const auto& step : steps) {
    expect_same(step.positions);
    EXPECT_EQ(device_.num_captures, step.captures) << step.positions[0];
  }
}

TEST_F(CudaBackendTest, StepsWithPromptsAreNotRecorded) {
  const auto backend = Create();
  for (int i = 0; i < 3; ++i) {
    const Batch batch(0, 4);
    int calls = 0;
    backend->BeginStep(batch.view);
    backend->Repeat({this}, [&] { ++calls; });
    EXPECT_EQ(calls, 1);
    EXPECT_TRUE(backend->EndStep().ok());
  }
  EXPECT_EQ(device_.num_captures, 0);
}

TEST_F(CudaBackendTest, AStepThatCannotBeRecordedGoesOnWithout) {
  device_.refuse_capture = true;
  MiniDecoder refused(Create());
  EmulatedDevice other;
  MiniDecoder plain(
      std::make_unique<CudaBackend>(std::make_unique<EmulatedDriver>(&other),
                                    CudaBackendOptions{.graphs = false}));
  for (const int p : {1, 2, 3}) {
    EXPECT_TRUE(SameBits(refused.Step({p}), plain.Step({p})));
  }
  EXPECT_EQ(device_.num_captures, 1);
  EXPECT_EQ(device_.num_replays, 0);
  EXPECT_THAT(refused.backend().graph_status().message(),
              HasSubstr("not permitted"));
  EXPECT_THAT(refused.backend().note(), HasSubstr("could not be recorded"));
  device_.refuse_capture = false;  // other shapes may do better
  refused.Step({4, 5});
  refused.Step({5, 6});
  EXPECT_EQ(device_.num_captures, 2);
  EXPECT_EQ(device_.num_replays, 1);
}

TEST_F(CudaBackendTest, OperationsThatCannotBeRecordedRunWithoutARecording) {
  const auto backend = Create();
  const auto layer = PackLayer(*backend, 64, 48);
  ASSERT_TRUE(backend->Reserve(1, 1).ok());
  // More rows than the batch has tokens: nothing was reserved for them.
  const Tensor x = Get(backend->Allocate(DType::kF32, Shape{9, 64}));
  const Tensor y = Get(backend->Allocate(DType::kF32, Shape{9, 48}));
  const Batch batch(0, 1);
  for (int i = 0; i < 2; ++i) {
    const int rows = i == 0 ? 1 : 9;
    backend->BeginStep(batch.view);
    backend->Repeat({this}, [&] {
      backend->Linear(*layer, x.view().FirstRows(rows), Backend::Output::kStore,
                      y.view().FirstRows(rows), {});
    });
    EXPECT_TRUE(backend->EndStep().ok());
  }
  EXPECT_EQ(device_.num_captures, 1);
  EXPECT_EQ(device_.num_replays, 0);
  EXPECT_THAT(backend->graph_status().message(), HasSubstr("more rows"));
}

TEST_F(CudaBackendTest, AllocationsEndRecordings) {
  MiniDecoder decoder(Create());
  decoder.Step({1});
  decoder.Step({2});
  EXPECT_EQ(device_.num_captures, 1);
  (void)Get(decoder.backend().Allocate(DType::kF32, Shape{1}));
  decoder.Step({3});
  EXPECT_EQ(device_.num_captures, 1);
  decoder.Step({4});
  EXPECT_EQ(device_.num_captures, 2);
}

TEST_F(CudaBackendTest, RecordingsAreBoundedInNumber) {
  const auto backend = Create();
  const Tensor x = Get(backend->Allocate(DType::kF32, Shape{4}));
  const Batch batch(0, 1);
  constexpr int kShapes = 200;
  for (int shape = 0; shape < kShapes; ++shape) {
    for (int i = 0; i < 2; ++i) {
      backend->BeginStep(batch.view);
      backend->Repeat({this, nullptr, shape}, [&] { backend->Zero(x.view()); });
      ASSERT_TRUE(backend->EndStep().ok());
    }
  }
  EXPECT_EQ(device_.num_captures, kShapes);
  EXPECT_EQ(device_.num_graphs, int{CudaGraphs::kMaxEntries});
}

TEST(CudaGraphsTest, TheLeastRecentlyUsedRecordingGoesFirst) {
  CudaGraphs graphs;
  const auto use = [&](int tokens) -> CudaGraphs::Entry& {
    return graphs.Use({.num_tokens = tokens});
  };
  const auto max = static_cast<int>(CudaGraphs::kMaxEntries);
  for (int i = 0; i < max; ++i) EXPECT_EQ(use(i).uses, 1);
  EXPECT_EQ(use(0).uses, 2);    // now the most recent
  EXPECT_EQ(use(max).uses, 1);  // in place of 1
  EXPECT_EQ(use(0).uses, 3);
  EXPECT_EQ(use(2).uses, 2);
  EXPECT_EQ(use(1).uses, 1);
}

TEST_F(CudaBackendTest, AnOperationOutsideAStepIsFatal) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto backend = Create();
  EXPECT_DEATH((void)backend->EndStep(), "EndStep outside a step");
}

}  // namespace
}  // namespace binarymos
