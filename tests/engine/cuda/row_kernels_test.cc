// The simple kernels of the CUDA backend, run on the CPU, against those of the
// CPU backend, bit for bit.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "engine/core/float16.h"
#include "engine/core/float8.h"
#include "engine/core/thread_pool.h"
#include "engine/kernels/cpu/rope.h"
#include "engine/kernels/cuda/rms_norm.h"
#include "engine/kernels/cuda/rope.h"
#include "engine/kernels/cuda/rows.h"
#include "gtest/gtest.h"
#include "tests/engine/cuda/emulated_block.h"
#include "tests/engine/kernels/kernel_test_util.h"

namespace binarymos {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr EmulatedOrder kOrders[] = {EmulatedOrder::kAscending,
                                     EmulatedOrder::kDescending};

const cpu::CpuKernels& Cpu() { return cpu::PortableKernels(); }

TEST(CudaMathTest, ExpGivesTheBitsOfTheCpu) {
  std::vector<float> x = {0.0f, -0.0f, 1.0f,   88.7f, 88.8f, 89.5f, -103.9f,
                          -104, -200,  -87.4f, kInf,  -kInf, kNan,  1e-40f};
  for (float value = -110.0f; value < 95.0f; value += 0.0137f) {
    x.push_back(value);
  }
  std::vector<float> expected(x.size()), actual;
  Cpu().exp(x.data(), expected.data(), static_cast<int64_t>(x.size()));
  for (const float value : x) actual.push_back(cuda::Exp(value));
  EXPECT_TRUE(SameBits(actual, expected));
}

TEST(CudaRmsNormTest, GivesTheBitsOfTheCpu) {
  for (const int64_t hidden : {1, 8, 15, 16, 17, 100, 4096, 4100, 9000}) {
    for (const EmulatedOrder order : kOrders) {
      SCOPED_TRACE(hidden);
      const auto x = RandomFloats(3 * hidden, 1, 5.0f);
      const auto weight = RandomHalves(hidden, 2);
      std::vector<float> expected(x.size()), actual(x.size(), kNan);
      for (int r = 0; r < 3; ++r) {
        Cpu().rms_norm(x.data() + r * hidden, weight.data(), 1e-5f,
                       expected.data() + r * hidden, hidden);
      }
      RunEmulated(cuda::RmsNorm{.x = x.data(),
                                .weight = weight.data(),
                                .eps = 1e-5f,
                                .rows = 3,
                                .hidden = hidden,
                                .out = actual.data()},
                  order);
      EXPECT_TRUE(SameBits(actual, expected));
    }
  }
}

TEST(CudaRmsNormTest, InPlaceIsTheSame) {
  const auto x = RandomFloats(500, 1);
  const auto weight = RandomHalves(500, 2);
  std::vector<float> expected(500), in_place = x;
  Cpu().rms_norm(x.data(), weight.data(), 1e-6f, expected.data(), 500);
  RunEmulated(cuda::RmsNorm{.x = in_place.data(),
                            .weight = weight.data(),
                            .eps = 1e-6f,
                            .rows = 1,
                            .hidden = 500,
                            .out = in_place.data()});
  EXPECT_TRUE(SameBits(in_place, expected));
}

TEST(CudaRoundToHalvesTest, FiniteNumbersStayFinite) {
  auto x = RandomFloats(4100, 1, 30000.0f);
  x[0] = 1e9f, x[1] = -1e9f, x[2] = 65519.0f, x[3] = 65520.0f;
  x[4] = 1e-8f, x[5] = kNan, x[6] = kInf, x[7] = -kInf, x[4099] = -65520.0f;
  std::vector<uint16_t> halves(4101, 0x1234);
  RunEmulated(cuda::RoundToHalves{
      .x = x.data(), .size = 4100, .halves = halves.data()});
  for (size_t i = 0; i < x.size(); ++i) {
    float expected = x[i];
    if (std::isfinite(expected)) {
      expected = std::min(std::max(expected, -65504.0f), 65504.0f);
    }
    EXPECT_TRUE(
        SameBits(HalfToFloat(halves[i]), HalfToFloat(FloatToHalf(expected))))
        << x[i];
  }
  EXPECT_EQ(halves[4100], 0x1234);
}

TEST(CudaAddBiasTest, EveryRowGetsIt) {
  const auto bias = RandomHalves(70, 3);
  const auto before = RandomFloats(5 * 70, 4);
  for (const bool accumulate : {true, false}) {
    std::vector<float> y = before;
    y.push_back(7.0f);
    RunEmulated(cuda::AddBias{.bias = bias.data(),
                              .rows = 5,
                              .out = 70,
                              .accumulate = accumulate,
                              .y = y.data()});
    for (int i = 0; i < 5 * 70; ++i) {
      const float value = HalfToFloat(bias[i % 70]);
      EXPECT_EQ(y[i], accumulate ? before[i] + value : value);
    }
    EXPECT_EQ(y.back(), 7.0f);
  }
}

TEST(CudaSwiGluTest, GivesTheBitsOfTheCpu) {
  auto gate = RandomFloats(1000, 1, 20.0f);
  gate[3] = kNan, gate[4] = kInf, gate[5] = -kInf, gate[6] = -0.0f;
  const auto up = RandomFloats(1000, 2);
  std::vector<float> expected(1000), actual(1000, kNan);
  Cpu().swiglu(gate.data(), up.data(), expected.data(), 1000);
  RunEmulated(cuda::SwiGlu{.gate = gate.data(),
                           .up = up.data(),
                           .size = 1000,
                           .out = actual.data()});
  EXPECT_TRUE(SameBits(actual, expected));
}

TEST(CudaFloat8Test, ConvertsAsTheHostDoes) {
  for (int code = 0; code < 256; ++code) {
    const float value = E4m3ToFloat(static_cast<uint8_t>(code));
    // Either of a pair.
    const uint32_t pair = cuda::E4m3Pair(0x3800u | static_cast<uint32_t>(code));
    const uint32_t swapped =
        cuda::E4m3Pair(0x38u | static_cast<uint32_t>(code) << 8);
    EXPECT_TRUE(SameBits(HalfToFloat(pair & 0xffffu), value)) << code;
    EXPECT_TRUE(SameBits(HalfToFloat(swapped >> 16), value)) << code;
    EXPECT_EQ(HalfToFloat(pair >> 16), 1.0f);
    EXPECT_EQ(HalfToFloat(swapped & 0xffffu), 1.0f);
  }
  for (int half = 0; half < 0x10000; ++half) {
    const float value = HalfToFloat(static_cast<uint16_t>(half));
    ASSERT_EQ(cuda::ToE4m3(value), FloatToE4m3(value)) << value;
  }
}

template <typename T>
constexpr cpu::KvType kKvType = sizeof(T) == 2   ? cpu::KvType::kF16
                                : sizeof(T) == 1 ? cpu::KvType::kE4m3
                                                 : cpu::KvType::kF32;

// All types of the cache.
template <typename T>
void ExpectRopeOfTheCpu(int heads, int kv_heads, int dim) {
  ThreadPool pool(1);
  const std::vector<int32_t> positions = {5, 0, 9};
  const std::vector<int64_t> slots = {37, 0, 18};
  const auto cos = RandomFloats(10 * dim / 2, 1);
  const auto sin = RandomFloats(10 * dim / 2, 2);
  std::vector<float> q = RandomFloats(3 * heads * dim, 3), cuda_q = q;
  std::vector<float> k = RandomFloats(3 * kv_heads * dim, 4), cuda_k = k;
  const auto v = RandomFloats(3 * kv_heads * dim, 5);
  std::vector<T> keys(3 * kv_heads * 16 * dim), cuda_keys = keys;
  std::vector<T> values = keys, cuda_values = keys;
  cpu::RopeAndWriteKv({Cpu(), pool}, {.num_heads = heads,
                                      .num_kv_heads = kv_heads,
                                      .head_dim = dim,
                                      .positions = positions,
                                      .kv_slots = slots,
                                      .cos = cos.data(),
                                      .sin = sin.data(),
                                      .q = q.data(),
                                      .k = k.data(),
                                      .v = v.data(),
                                      .keys = keys.data(),
                                      .values = values.data(),
                                      .kv = kKvType<T>});
  RunEmulated(cuda::RopeAndWriteKv<T>{.num_heads = heads,
                                      .num_kv_heads = kv_heads,
                                      .head_dim = dim,
                                      .num_tokens = 3,
                                      .positions = positions.data(),
                                      .kv_slots = slots.data(),
                                      .cos = cos.data(),
                                      .sin = sin.data(),
                                      .q = cuda_q.data(),
                                      .k = cuda_k.data(),
                                      .v = v.data(),
                                      .keys = cuda_keys.data(),
                                      .values = cuda_values.data()},
              EmulatedOrder::kDescending);
  EXPECT_TRUE(SameBits(cuda_q, q));
  EXPECT_TRUE(SameBits(cuda_k, k));
  EXPECT_EQ(cuda_keys, keys);
  EXPECT_EQ(cuda_values, values);
}

TEST(CudaRopeTest, GivesTheBitsOfTheCpu) {
  for (const int dim : {2, 24, 128}) {
    ExpectRopeOfTheCpu<uint16_t>(4, 2, dim);
    ExpectRopeOfTheCpu<float>(3, 3, dim);
    ExpectRopeOfTheCpu<uint8_t>(4, 2, dim);
  }
}

TEST(CudaRowsTest, EmbeddingsAndRowsAreCopied) {
  const auto table = RandomHalves(7 * 300, 1);
  const std::vector<int32_t> tokens = {6, 0, 6};
  std::vector<float> out(3 * 300, kNan);
  RunEmulated(cuda::Embed{.table = table.data(),
                          .tokens = tokens.data(),
                          .num_tokens = 3,
                          .hidden = 300,
                          .out = out.data()});
  for (int i = 0; i < 900; ++i) {
    ASSERT_EQ(out[i], HalfToFloat(table[tokens[i / 300] * 300 + i % 300]));
  }
  const std::vector<int32_t> rows = {2, 1};
  std::vector<float> gathered(2 * 300, kNan);
  RunEmulated(cuda::GatherRows{.x = out.data(),
                               .rows = rows.data(),
                               .num_rows = 2,
                               .hidden = 300,
                               .out = gathered.data()});
  EXPECT_TRUE(
      std::equal(gathered.begin(), gathered.begin() + 300, out.begin() + 600));
  EXPECT_TRUE(
      std::equal(gathered.begin() + 300, gathered.end(), out.begin() + 300));
}

TEST(CudaSumGatesTest, AddsTokensInOrder) {
  const auto gates = RandomFloats(100 * 3, 1);
  std::vector<float> sums = {1.0f, 2.0f, 3.0f}, expected = sums;
  for (int i = 0; i < 300; ++i) expected[i % 3] += gates[i];
  RunEmulated(cuda::SumGates{
      .gates = gates.data(), .tokens = 100, .experts = 3, .sums = sums.data()});
  EXPECT_TRUE(SameBits(sums, expected));
}

}  // namespace
}  // namespace binarymos
