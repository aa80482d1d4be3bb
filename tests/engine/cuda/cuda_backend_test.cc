// What the CUDA backend asks of a device: memory, launches, and what it does
// when the device fails. Its arithmetic is compared in
// tests/engine/backend/backend_test.cc.
#include "engine/backend/cuda_backend.h"

#include <cstdint>
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

TEST_F(CudaBackendTest, DescribesItsDevice) {
  EXPECT_EQ(Create()->description(), "cuda:0 (emulated, compute 9.0)");
}

TEST_F(CudaBackendTest, AvailableMemoryLeavesToOthersWhatIsTheirs) {
  device_.total_memory = 1000 * kMiB;
  const auto backend = Create({.memory_utilization = 0.75});
  EXPECT_EQ(Get(backend->AvailableMemory()), 750 * kMiB - 32 * kMiB);
  device_.used_memory = 500 * kMiB;
  EXPECT_EQ(Get(backend->AvailableMemory()), 250 * kMiB - 32 * kMiB);
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

TEST_F(CudaBackendTest, HeadsThatDoNotFitSharedMemoryAreRefusedWithAReason) {
  device_.max_shared_bytes = 99 << 10;
  const auto backend = Create();
  const Batch batch(0, 1);
  const Tensor q = Get(backend->Allocate(DType::kF32, Shape{1, 512}));
  const Tensor cache =
      Get(backend->Allocate(DType::kF16, Shape{1, 1, kBlockSize, 512}));
  backend->BeginStep(batch.view);
  backend->Attention({.num_heads = 1, .num_kv_heads = 1, .head_dim = 512},
                     q.view(), {cache.view(), cache.view()}, q.view());
  const absl::Status status = backend->EndStep();
  EXPECT_TRUE(absl::IsUnimplemented(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("head_dim 512"));
}

TEST_F(CudaBackendTest, AnOperationOutsideAStepIsFatal) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto backend = Create();
  EXPECT_DEATH((void)backend->EndStep(), "EndStep outside a step");
}

}  // namespace
}  // namespace binarymos
