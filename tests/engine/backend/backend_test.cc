// The backends behind their common interface: a small decoder layer on each,
// over a ragged batch. How exact the kernels are is measured in
// tests/engine/kernels; here it matters that everything is connected.
#include "engine/backend/backend.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine/backend/backend_factory.h"
#include "engine/backend/cuda_backend.h"
#include "engine/core/float16.h"
#include "engine/core/float8.h"
#include "engine/kernels/cpu/cpu_kernels.h"
#include "gtest/gtest.h"
#include "tests/engine/cuda/emulated_driver.h"
#include "tests/engine/kernels/kernel_test_util.h"

namespace binarymos {
namespace {

using Output = Backend::Output;

constexpr int kHidden = 64, kInner = 96, kVocab = 50, kExperts = 4;
constexpr AttentionShape kAttention{
    .num_heads = 4, .num_kv_heads = 2, .head_dim = 16};
constexpr int kKvWidth = 2 * 16;
constexpr int kMaxPositions = 64, kNumBlocks = 8;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class Random {
 public:
  std::vector<uint16_t> Halves(int64_t n, float scale, float mean = 0.0f) {
    std::normal_distribution<float> normal(mean, scale);
    std::vector<uint16_t> halves(n);
    for (uint16_t& half : halves) half = FloatToHalf(normal(generator_));
    return halves;
  }
  std::vector<float> Floats(int64_t n) {
    std::normal_distribution<float> normal;
    std::vector<float> floats(n);
    for (float& value : floats) value = normal(generator_);
    return floats;
  }
  std::vector<uint8_t> Bytes(int64_t n) {
    std::vector<uint8_t> bytes(n);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(generator_());
    return bytes;
  }

 private:
  std::mt19937 generator_{7};
};

// The host memory of one linear layer.
struct Weights {
  int64_t in, out;
  std::vector<uint16_t> weight, gate, in_scale, out_scale, bias;
  std::vector<uint8_t> sign;

  static Weights Binary(Random& random, int64_t in, int64_t out) {
    return {.in = in,
            .out = out,
            .gate = random.Halves(kExperts * in, 0.2f),
            .in_scale = random.Halves(kExperts * in, 0.1f, 0.3f),
            .out_scale = random.Halves(kExperts * out, 0.1f, 0.3f),
            .bias = random.Halves(out, 0.1f),
            .sign = random.Bytes(out * in / 8)};
  }
  static Weights Float16(Random& random, int64_t in, int64_t out) {
    return {.in = in, .out = out, .weight = random.Halves(in * out, 0.5f)};
  }

  LinearTensors Tensors() const {
    LinearTensors tensors{.in_features = in, .out_features = out};
    if (!weight.empty()) {
      tensors.kind = LinearKind::kFloat16;
      tensors.weight = {weight.data(), DType::kF16, Shape{out, in}};
      return tensors;
    }
    tensors.kind = LinearKind::kBinaryMos;
    tensors.num_experts = kExperts;
    tensors.sign = {sign.data(), DType::kU8, Shape{out, in / 8}};
    tensors.gate = {gate.data(), DType::kF16, Shape{kExperts, in}};
    tensors.in_scale = {in_scale.data(), DType::kF16, Shape{kExperts, in}};
    tensors.out_scale = {out_scale.data(), DType::kF16, Shape{kExperts, out}};
    tensors.bias = {bias.data(), DType::kF16, Shape{out}};
    return tensors;
  }
};

struct LayerWeights {
  Random random;
  Weights embed = Weights::Float16(random, kHidden, kVocab);
  Weights q = Weights::Binary(random, kHidden, kHidden);
  Weights k = Weights::Binary(random, kHidden, kKvWidth);
  Weights v = Weights::Binary(random, kHidden, kKvWidth);
  Weights o = Weights::Binary(random, kHidden, kHidden);
  Weights gate = Weights::Binary(random, kHidden, kInner);
  Weights up = Weights::Binary(random, kHidden, kInner);
  Weights down = Weights::Binary(random, kInner, kHidden);
  std::vector<uint16_t> norm = random.Halves(kHidden, 0.1f, 1.0f);
};

// A prompt chunk or a single token of a sequence.
struct Row {
  int first_position;
  std::vector<TokenId> tokens;
  std::vector<BlockId> blocks;
};

// Owns what a BatchView shows; the last token of each row wants logits.
struct Batch {
  explicit Batch(const std::vector<Row>& rows) {
    for (const Row& row : rows) {
      int position = row.first_position;
      for (const TokenId token : row.tokens) {
        tokens.push_back(token);
        positions.push_back(position);
        slots.push_back(int64_t{row.blocks[position / kBlockSize]} *
                            kBlockSize +
                        position % kBlockSize);
        ++position;
      }
      starts.push_back(static_cast<int32_t>(tokens.size()));
      context_lens.push_back(position);
      tables.insert(tables.end(), row.blocks.begin(), row.blocks.end());
      table_starts.push_back(static_cast<int32_t>(tables.size()));
      logit_rows.push_back(starts.back() - 1);
    }
  }
  BatchView View() const {
    return {.tokens = tokens,
            .positions = positions,
            .kv_slots = slots,
            .query_starts = starts,
            .context_lens = context_lens,
            .block_tables = tables,
            .block_table_starts = table_starts,
            .logit_rows = logit_rows};
  }

  std::vector<TokenId> tokens;
  std::vector<int32_t> positions, starts = {0}, context_lens;
  std::vector<int64_t> slots;
  std::vector<BlockId> tables;
  std::vector<int32_t> table_starts = {0}, logit_rows;
};

template <typename T>
T Get(absl::StatusOr<T> value) {
  BINARYMOS_CHECK(value.ok()) << value.status().ToString();
  return *std::move(value);
}

// "avx2", "portable", "reference": the CPU. "emulated": the CUDA backend on an
// emulated device. "cuda": on the first real one.
struct TestBackend {
  std::string name;
  int threads = 1;
  int activation_bits = 0;
  bool fast_linear = false;
  bool wgmma = false;

  absl::StatusOr<std::unique_ptr<Backend>> Create() const {
    if (name == "emulated") {
      static auto& device = *new EmulatedDevice{.can_multiply = true};
      CudaBackendOptions options;
      options.fast_linear = fast_linear;
      options.wgmma = wgmma;
      if (activation_bits != 0) options.activation_bits = activation_bits;
      return std::make_unique<CudaBackend>(
          std::make_unique<EmulatedDriver>(&device), options);
    }
    BackendOptions options;
    options.activation_bits = activation_bits;
    options.fast_linear = fast_linear;
    options.cuda_wgmma = wgmma;
    options.device = name == "cuda" ? "cuda" : "cpu";
    options.num_threads = threads;
    if (name != "cuda") options.cpu_kernels = name;
    return CreateBackend(options);
  }
};

// Empty, or why the backend cannot run here.
std::string WhyNot(const std::string& name) {
  if (name == "avx2" && cpu::Avx2Kernels() == nullptr) {
    return "this CPU has no AVX2, FMA and F16C";
  }
  if (name != "cuda") return "";
  const auto backend = TestBackend{name}.Create();
  return absl::IsUnavailable(backend.status())
             ? std::string(backend.status().message())
             : "";
}

// One decoder layer and an output layer on one backend.
class MiniModel {
 public:
  MiniModel(const TestBackend& backend, const LayerWeights& weights,
            DType kv = DType::kF16)
      : MiniModel(Get(backend.Create()), weights, kv) {}
  MiniModel(std::unique_ptr<Backend> backend, const LayerWeights& weights,
            DType kv = DType::kF16)
      : backend_(std::move(backend)) {
    for (const auto& [source, packed] : {std::pair{&weights.embed, &embed_},
                                         {&weights.q, &q_},
                                         {&weights.k, &k_},
                                         {&weights.v, &v_},
                                         {&weights.o, &o_},
                                         {&weights.gate, &gate_},
                                         {&weights.up, &up_},
                                         {&weights.down, &down_}}) {
      *packed = Get(backend_->Pack(source->Tensors()));
    }
    norm_ = Get(
        backend_->Upload({weights.norm.data(), DType::kF16, Shape{kHidden}}));
    std::vector<float> cos, sin;
    for (int i = 0; i < kMaxPositions * kAttention.head_dim / 2; ++i) {
      cos.push_back(std::cos(0.1f * static_cast<float>(i)));
      sin.push_back(std::sin(0.1f * static_cast<float>(i)));
    }
    const Shape table{kMaxPositions, kAttention.head_dim / 2};
    cos_ = Get(backend_->Upload({cos.data(), DType::kF32, table}));
    sin_ = Get(backend_->Upload({sin.data(), DType::kF32, table}));
    const Shape cache{kNumBlocks, kAttention.num_kv_heads, kBlockSize,
                      kAttention.head_dim};
    keys_ = Get(backend_->Allocate(kv, cache));
    values_ = Get(backend_->Allocate(kv, cache));
    gate_sums_ = Get(backend_->Allocate(DType::kF32, Shape{kExperts}));
  }

  // The logits [rows, vocab] of one step.
  std::vector<float> Step(const std::vector<Row>& rows) {
    const Batch batch(rows);
    const BatchView view = batch.View();
    const int tokens = view.num_tokens(), logit_rows = view.num_logit_rows();
    EXPECT_TRUE(backend_->Reserve(tokens, logit_rows).ok());
    const auto make = [&](int count, int64_t width) {
      return Get(backend_->Allocate(DType::kF32, Shape{count, width}));
    };
    const Tensor hidden = make(tokens, kHidden), normed = make(tokens, kHidden);
    const Tensor q = make(tokens, kHidden), k = make(tokens, kKvWidth),
                 v = make(tokens, kKvWidth);
    const Tensor gate = make(tokens, kInner), up = make(tokens, kInner);
    const Tensor last = make(logit_rows, kHidden);
    const Tensor logits = make(logit_rows, kVocab);
    const KvLayer kv{keys_.view(), values_.view()};
    const auto linear = [&](const auto& weights, const Tensor& x, Output output,
                            const Tensor& y, const TensorView& sums) {
      backend_->Linear(*weights, x.view(), output, y.view(), sums);
    };

    backend_->BeginStep(view);
    backend_->Zero(gate_sums_.view());
    backend_->Embed(*embed_, hidden.view());
    backend_->RmsNorm(hidden.view(), norm_.view(), 1e-5f, normed.view());
    linear(q_, normed, Output::kStore, q, gate_sums_.view());
    linear(k_, normed, Output::kStore, k, {});
    linear(v_, normed, Output::kStore, v, {});
    backend_->RopeAndAttention(kAttention, {cos_.view(), sin_.view()}, q.view(),
                               k.view(), v.view(), kv, normed.view());
    linear(o_, normed, Output::kAccumulate, hidden, {});
    backend_->RmsNorm(hidden.view(), norm_.view(), 1e-5f, normed.view());
    linear(gate_, normed, Output::kStore, gate, {});
    linear(up_, normed, Output::kStore, up, {});
    backend_->SwiGlu(gate.view(), up.view(), gate.view());
    linear(down_, gate, Output::kAccumulate, hidden, {});
    backend_->GatherLogitRows(hidden.view(), last.view());
    backend_->RmsNorm(last.view(), norm_.view(), 1e-5f, last.view());
    linear(embed_, last, Output::kStore, logits, {});
    std::vector<float> result(logits.view().shape.num_elements());
    EXPECT_TRUE(backend_->ReadBack(logits.view(), std::span(result)).ok());
    EXPECT_TRUE(backend_->EndStep().ok());
    return result;
  }

  std::vector<float> GateSums() {
    std::vector<float> sums(kExperts);
    EXPECT_TRUE(backend_->ReadBack(gate_sums_.view(), std::span(sums)).ok());
    return sums;
  }

 private:
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<PackedLinear> embed_, q_, k_, v_, o_, gate_, up_, down_;
  Tensor norm_, cos_, sin_, keys_, values_, gate_sums_;
};

const std::vector<Row>& RaggedRows() {
  static const auto& rows = *new std::vector<Row>{
      {0, {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3}, {2, 5}},
      {0, {49}, {0}},
      {0, {27, 18, 28}, {7}}};
  return rows;
}

class BackendTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const std::string reason = WhyNot(GetParam());
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
  LayerWeights weights_;
};

class QuantizedBackendTest : public BackendTest {};

TEST_P(QuantizedBackendTest, ALayerIsNearTheReference) {
  MiniModel reference(TestBackend{"reference"}, weights_, DType::kF32);
  MiniModel model(TestBackend{GetParam(), 2}, weights_, DType::kF32);
  const auto expected = reference.Step(RaggedRows());
  const auto logits = model.Step(RaggedRows());
  // Quantization to 14 bits rounds by at most m / (2 * 8191) where the mean
  // |u| is about m / 3: 2e-4 relative, rounded at random in each of the seven
  // linear layers. Ten times that is far below any wrong connection.
  double error = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += std::pow(logits[i] - expected[i], 2);
    norm += std::pow(expected[i], 2);
  }
  EXPECT_GT(norm, 1.0);
  EXPECT_LT(std::sqrt(error / norm), 2e-3);
}

TEST_P(BackendTest, ASequenceDoesNotSeeItsNeighboursNorItsChunks) {
  for (const DType kv : {DType::kF16, DType::kF8E4M3}) {
    MiniModel together(TestBackend{GetParam(), 3}, weights_, kv);
    const auto all = together.Step(RaggedRows());
    for (size_t r = 0; r < RaggedRows().size(); ++r) {
      const Row& row = RaggedRows()[r];
      MiniModel alone(TestBackend{GetParam()}, weights_, kv);
      std::vector<float> last;
      for (size_t t = 0; t < row.tokens.size(); ++t) {
        last = alone.Step({{static_cast<int>(t), {row.tokens[t]}, row.blocks}});
      }
      const std::vector<float> in_batch(all.begin() + r * kVocab,
                                        all.begin() + (r + 1) * kVocab);
      EXPECT_TRUE(SameBits(last, in_batch)) << Name(kv) << ", sequence " << r;
    }
  }
}

// All halves, and what is next to the middle between two codes.
std::vector<float> FloatsToRound() {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  std::vector<float> floats;
  for (int half = 0; half < 0x10000; ++half) {
    floats.push_back(HalfToFloat(static_cast<uint16_t>(half)));
  }
  for (int code = 0; code < 0x7e; ++code) {
    const float middle = (E4m3ToFloat(static_cast<uint8_t>(code)) +
                          E4m3ToFloat(static_cast<uint8_t>(code + 1))) /
                         2;
    for (const float sign : {1.0f, -1.0f}) {
      floats.push_back(sign * std::nextafter(middle, 0.0f));
      floats.push_back(sign * std::nextafter(middle, kInf));
    }
  }
  for (const float large : {1e5f, 1e38f, kInf}) {
    floats.insert(floats.end(), {large, -large, 1 / large, -1 / large});
  }
  return floats;
}

TEST_P(BackendTest, ACacheInE4m3HoldsTheNearestCodes) {
  std::vector<float> floats = FloatsToRound();
  const int tokens = static_cast<int>(floats.size() / kKvWidth) + 1;
  floats.resize(tokens * kKvWidth);
  const int blocks = (tokens + kBlockSize - 1) / kBlockSize;
  const auto backend = Get(TestBackend{GetParam(), 2}.Create());
  ASSERT_TRUE(backend->Reserve(tokens, 1).ok());
  const Tensor q = Get(backend->Allocate(DType::kF32, Shape{tokens, kHidden}));
  const Tensor k = Get(backend->Allocate(DType::kF32, Shape{tokens, kKvWidth}));
  const Tensor v = Get(
      backend->Upload({floats.data(), DType::kF32, Shape{tokens, kKvWidth}}));
  const Tensor angles =
      Get(backend->Allocate(DType::kF32, Shape{1, kAttention.head_dim / 2}));
  const Shape cache{blocks, kAttention.num_kv_heads, kBlockSize,
                    kAttention.head_dim};
  const Tensor keys = Get(backend->Allocate(DType::kF8E4M3, cache));
  const Tensor values = Get(backend->Allocate(DType::kF8E4M3, cache));
  const std::vector<TokenId> ids(tokens);
  const std::vector<int32_t> positions(tokens);
  std::vector<int64_t> slots(tokens);
  std::iota(slots.begin(), slots.end(), 0);
  const BatchView batch{
      .tokens = ids, .positions = positions, .kv_slots = slots};
  backend->BeginStep(batch);
  backend->RopeAndWriteKv(kAttention, {angles.view(), angles.view()}, q.view(),
                          k.view(), v.view(), {keys.view(), values.view()});
  // Only floats can be read back: four codes each.
  std::vector<float> read(cache.num_elements() / 4);
  ConstTensorView codes = values.view();
  codes.dtype = DType::kF32;
  codes.shape = Shape{static_cast<int64_t>(read.size())};
  ASSERT_TRUE(backend->ReadBack(codes, std::span(read)).ok());
  ASSERT_TRUE(backend->EndStep().ok());
  const auto* bytes = reinterpret_cast<const uint8_t*>(read.data());
  for (int i = 0; i < tokens * kKvWidth; ++i) {
    const int token = i / kKvWidth, head = i % kKvWidth / 16, d = i % 16;
    const int row = (token / kBlockSize * 2 + head) * kBlockSize;
    const uint8_t code = bytes[(row + token % kBlockSize) * 16 + d];
    if (!std::isfinite(floats[i])) {
      ASSERT_EQ(code & 0x7f, 0x7f);
    } else {
      ASSERT_EQ(code, FloatToE4m3(floats[i])) << floats[i];
    }
  }
}

TEST_P(BackendTest, GatesAreSummedOverTokens) {
  MiniModel model(TestBackend{GetParam()}, weights_);
  for (int step = 0; step < 2; ++step) {  // the second starts from zero again
    model.Step(RaggedRows());
    double sum = 0;
    for (const float gate : model.GateSums()) {
      EXPECT_GT(gate, 0.0f);
      sum += gate;
    }
    EXPECT_NEAR(sum, 18 + 1 + 3, 1e-4);
  }
}

TEST_P(BackendTest, NanStaysInItsSequence) {
  LayerWeights poisoned;
  poisoned.embed.weight[49 * kHidden] = 0x7e00;  // token 49: the second row
  MiniModel clean(TestBackend{GetParam(), 2}, weights_);
  MiniModel model(TestBackend{GetParam(), 2}, poisoned);
  const auto expected = clean.Step(RaggedRows());
  const auto logits = model.Step(RaggedRows());
  for (size_t i = 0; i < logits.size(); ++i) {
    // The table is also the output layer: the logit of token 49 is NaN for all.
    if (i / kVocab == 1 || i % kVocab == 49) {
      ASSERT_TRUE(std::isnan(logits[i])) << i;
    } else {
      ASSERT_EQ(logits[i], expected[i]) << i;
    }
  }
}

TEST_P(BackendTest, AllocatedMemoryIsZeroAndUploadsAreCopies) {
  auto backend = TestBackend{GetParam()}.Create();
  ASSERT_TRUE(backend.ok());
  std::vector<float> values = {1.0f, 2.0f, 3.0f};
  const auto zeros = (*backend)->Allocate(DType::kF32, Shape{3});
  const auto copy = (*backend)->Upload({values.data(), DType::kF32, Shape{3}});
  ASSERT_TRUE(zeros.ok() && copy.ok());
  values.assign(3, kNan);
  EXPECT_TRUE((*backend)->ReadBack(zeros->view(), std::span(values)).ok());
  EXPECT_EQ(values, (std::vector<float>{0, 0, 0}));
  EXPECT_TRUE((*backend)->ReadBack(copy->view(), std::span(values)).ok());
  EXPECT_EQ(values, (std::vector<float>{1, 2, 3}));
  const auto memory = (*backend)->AvailableMemory();
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_GT(*memory, 0u);
}

TEST_P(BackendTest, TheLargestOfARowIsFoundOrWhatIsNotFinite) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const auto backend = Get(TestBackend{GetParam()}.Create());
  for (const int width : {1, 3, 255, 256, 700, 32000}) {
    SCOPED_TRACE(width);
    std::vector<std::vector<float>> rows;
    std::vector<int32_t> expected;
    const auto add = [&](int32_t largest, auto change) {
      Random random;
      rows.push_back(random.Floats(width));
      change(rows.back());
      expected.push_back(largest);
    };
    const int last = width - 1, middle = width / 2;
    for (const int at : {0, middle, last}) {
      add(at, [&](auto& row) { row[at] = 100; });
      add(at, [&](auto& row) {  // of equal ones, the first
        for (int i = at; i < width; i += 7) row[i] = 50;
      });
      for (const float bad : {kNan, kInf, -kInf}) {
        add(-1, [&](auto& row) { row[at] = bad; });
      }
    }
    add(0, [&](auto& row) { row.assign(width, -3); });
    add(0, [&](auto& row) {  // zeros are equal, whatever their sign
      row.assign(width, -0.0f);
      row[last] = 0.0f;
    });
    add(last, [&](auto& row) {
      row.assign(width, std::numeric_limits<float>::lowest());
      row[last] = -1;
    });
    std::vector<float> all;
    for (const auto& row : rows) all.insert(all.end(), row.begin(), row.end());
    const auto count = static_cast<int64_t>(rows.size());
    const Tensor x =
        Get(backend->Upload({all.data(), DType::kF32, Shape{count, width}}));
    std::vector<int32_t> ids(count, 12345);
    const BatchView empty;
    backend->BeginStep(empty);
    EXPECT_TRUE(backend->ArgMax(x.view(), std::span(ids)).ok());
    EXPECT_TRUE(backend->EndStep().ok());
    EXPECT_EQ(ids, expected);
  }
}

TEST_P(BackendTest, AnImpossibleAllocationIsResourceExhausted) {
  auto backend = TestBackend{GetParam()}.Create();
  ASSERT_TRUE(backend.ok());
  const auto tensor = (*backend)->Allocate(DType::kU8, Shape{int64_t{1} << 62});
  EXPECT_TRUE(absl::IsResourceExhausted(tensor.status())) << tensor.status();
}

TEST_P(BackendTest, APackedLayerKnowsItsShapeAndSize) {
  auto backend = TestBackend{GetParam()}.Create();
  ASSERT_TRUE(backend.ok());
  const auto binary = (*backend)->Pack(weights_.gate.Tensors());
  ASSERT_TRUE(binary.ok());
  EXPECT_EQ((*binary)->kind(), LinearKind::kBinaryMos);
  EXPECT_EQ((*binary)->in_features(), kHidden);
  EXPECT_EQ((*binary)->out_features(), kInner);
  EXPECT_EQ((*binary)->num_experts(), kExperts);
  EXPECT_GE((*binary)->bytes(), size_t{kHidden * kInner / 8});
  const auto float16 = (*backend)->Pack(weights_.embed.Tensors());
  ASSERT_TRUE(float16.ok());
  EXPECT_EQ((*float16)->kind(), LinearKind::kFloat16);
  EXPECT_EQ((*float16)->num_experts(), 0);
  EXPECT_EQ((*float16)->bytes(), size_t{kHidden * kVocab * 2});
}

INSTANTIATE_TEST_SUITE_P(Kernels, QuantizedBackendTest,
                         testing::Values("avx2", "portable", "emulated",
                                         "cuda"),
                         [](const auto& test) { return test.param; });

INSTANTIATE_TEST_SUITE_P(Kernels, BackendTest,
                         testing::Values("avx2", "portable", "reference",
                                         "emulated", "cuda"),
                         [](const auto& test) { return test.param; });

TEST(CpuBackendTest, PathsAndThreadsGiveTheSameBits) {
  const LayerWeights weights;
  MiniModel portable(TestBackend{"portable", 1}, weights);
  const auto expected = portable.Step(RaggedRows());
  for (int threads = 1; threads <= 8; ++threads) {
    MiniModel other(TestBackend{"auto", threads}, weights);
    EXPECT_EQ(other.Step(RaggedRows()), expected) << threads << " threads";
  }
}

// The canonical arithmetic of DESIGN section 6, on the device and, without one,
// in the same kernels run on the CPU. Attention over a cache in f16 is on
// tensor cores: near the CPU's, not its bits.
class CudaBackendTest : public BackendTest {};

// |actual - expected| / |expected|
double RelativeError(const std::vector<float>& actual,
                     const std::vector<float>& expected) {
  EXPECT_EQ(actual.size(), expected.size());
  double error = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += std::pow(double{actual[i]} - expected[i], 2);
    norm += std::pow(expected[i], 2);
  }
  return std::sqrt(error / norm);
}

// Of a Float16 linear: lm_head. The halves lose 2^-22 of the largest input and
// the sums less; a tensor core may lose a bit of every product on top. Computed
// for shapes as below with tensor cores that line products up and cut them
// (half_mma.h): 0.31 of this where they round once, 0.47 as Hopper's do, 0.58
// as Ampere's, 0.75 at worst (8 products at a time, 2 bits).
constexpr double kFloat16Error = 0x1p-19;

TEST_P(CudaBackendTest, WithACacheInF32TheLogitsAreThoseOfTheCpuButForLmHead) {
  for (const int bits : {8, 12, 14, 16}) {
    SCOPED_TRACE(bits);
    MiniModel cpu(TestBackend{"portable", 1, bits}, weights_, DType::kF32);
    MiniModel cuda(TestBackend{GetParam(), 1, bits}, weights_, DType::kF32);
    EXPECT_LT(RelativeError(cuda.Step(RaggedRows()), cpu.Step(RaggedRows())),
              kFloat16Error);
    EXPECT_TRUE(SameBits(cuda.GateSums(), cpu.GateSums()));
    const std::vector<Row> one = {{18, {7}, {2, 5}}};
    EXPECT_LT(RelativeError(cuda.Step(one), cpu.Step(one)), kFloat16Error);
  }
}

TEST_P(CudaBackendTest, WithNarrowCachesTheLogitsAreNearThoseOfTheCpu) {
  for (const auto& [kv, bits] : {std::pair{DType::kF16, 8},
                                 {DType::kF16, 12},
                                 {DType::kF16, 14},
                                 {DType::kF16, 16},
                                 {DType::kF8E4M3, 14},
                                 {DType::kF8E4M3, 16}}) {
    SCOPED_TRACE(testing::Message() << Name(kv) << ", " << bits << " bits");
    MiniModel cpu(TestBackend{"portable", 1, bits}, weights_, kv);
    MiniModel cuda(TestBackend{GetParam(), 1, bits}, weights_, kv);
    // What attention differs by can take an input of a later layer over a
    // rounding boundary: one step of 2^(1 - bits) of the largest, for few.
    const double bound = 1e-5 + std::ldexp(1.0, 1 - bits);
    for (const auto& rows :
         {RaggedRows(), std::vector<Row>{{18, {7}, {2, 5}}}}) {
      const auto expected = cpu.Step(rows);
      const auto actual = cuda.Step(rows);
      EXPECT_LT(RelativeError(actual, expected), bound);
      for (size_t i = 0; i < expected.size(); i += kVocab) {
        const auto greedy = [&](const std::vector<float>& logits) {
          const auto row = logits.begin() + static_cast<ptrdiff_t>(i);
          return std::max_element(row, row + kVocab) - row;
        };
        EXPECT_EQ(greedy(actual), greedy(expected)) << i / kVocab;
      }
    }
    // Of a layer before attention.
    EXPECT_TRUE(SameBits(cuda.GateSums(), cpu.GateSums()));
  }
}

// y after y += linear(x), and the sums of the gates.
std::vector<float> RunLinear(const TestBackend& name, const Weights& weights,
                             int tokens) {
  Random random;
  const auto backend = Get(name.Create());
  const auto packed = Get(backend->Pack(weights.Tensors()));
  BINARYMOS_CHECK(backend->Reserve(tokens, 1).ok());
  const std::vector<float> x = random.Floats(tokens * weights.in);
  const std::vector<float> before = random.Floats(tokens * weights.out);
  const Tensor device_x =
      Get(backend->Upload({x.data(), DType::kF32, Shape{tokens, weights.in}}));
  const Tensor y = Get(backend->Upload(
      {before.data(), DType::kF32, Shape{tokens, weights.out}}));
  const Tensor sums = Get(backend->Allocate(DType::kF32, Shape{kExperts}));
  const BatchView empty;
  backend->BeginStep(empty);
  backend->Linear(*packed, device_x.view(), Output::kAccumulate, y.view(),
                  sums.view());
  std::vector<float> result(before.size() + kExperts);
  EXPECT_TRUE(
      backend->ReadBack(y.view(), std::span(result).first(before.size())).ok());
  EXPECT_TRUE(
      backend->ReadBack(sums.view(), std::span(result).last(kExperts)).ok());
  EXPECT_TRUE(backend->EndStep().ok());
  return result;
}

struct LinearShape {
  int64_t in, out;
  std::vector<int> tokens;
};

TEST_P(CudaBackendTest, ABinaryLinearIsThatOfTheCpuAndAFloat16OneNearIt) {
  std::vector<LinearShape> shapes = {
      {8, 1, {1, 2}}, {520, 70, {1, 3, 9}}, {2056, 33, {1, 2}}};
  if (GetParam() == "cuda") {  // too slow on a CPU that plays a device
    shapes.push_back({520, 70, {2, 7, 8, 12, 13, 16, 17, 64, 255, 2048, 4096}});
    shapes.push_back({4096, 4096, {1, 2, 8, 17}});
    shapes.push_back({4096, 11008, {1, 64}});
    shapes.push_back({11008, 4096, {1, 9}});
    shapes.push_back({5120, 13824, {1, 2}});
    shapes.push_back({13824, 5120, {1, 2}});
  }
  for (const LinearShape& shape : shapes) {
    Random random;
    const Weights binary = Weights::Binary(random, shape.in, shape.out);
    const Weights float16 = Weights::Float16(random, shape.in, shape.out);
    for (const int tokens : shape.tokens) {
      SCOPED_TRACE(testing::Message() << shape.in << " to " << shape.out << ", "
                                      << tokens << " tokens");
      const auto expected =
          RunLinear(TestBackend{"auto", 2, 16}, binary, tokens);
      for (const bool wgmma : {false, true}) {
        TestBackend tested{GetParam(), 1, 16};
        tested.wgmma = wgmma;
        EXPECT_TRUE(SameBits(RunLinear(tested, binary, tokens), expected))
            << (wgmma ? "warpgroups" : "warps");
      }
      EXPECT_LT(
          RelativeError(RunLinear(TestBackend{GetParam()}, float16, tokens),
                        RunLinear(TestBackend{"auto", 2}, float16, tokens)),
          kFloat16Error);
    }
  }
}

// Of all but the sums of gates, which are the same bits.
double ErrorOfFastLinear(const std::string& device, const Weights& weights,
                         int tokens) {
  TestBackend fast{device, 1, 16};
  fast.fast_linear = true;
  const auto actual = RunLinear(fast, weights, tokens);
  const auto expected = RunLinear(TestBackend{"auto", 2, 16}, weights, tokens);
  double error = 0, norm = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    if (i >= actual.size() - kExperts) {
      EXPECT_EQ(actual[i], expected[i]) << "gates";
    } else {
      error += std::pow(actual[i] - expected[i], 2);
      norm += std::pow(expected[i], 2);
    }
  }
  return std::sqrt(error / norm);
}

TEST_P(CudaBackendTest, AFastLinearIsExactForFewRowsAndNearForMany) {
  std::vector<LinearShape> shapes = {{520, 70, {64, 65, 130}}};
  if (GetParam() == "cuda") {
    shapes.push_back({8, 1, {65, 1000}});
    shapes.push_back({264, 300, {127, 128, 255, 2048, 4096}});
    shapes.push_back({4096, 4096, {64, 65, 128, 512, 2048}});
    shapes.push_back({4096, 11008, {100, 512}});
    shapes.push_back({11008, 4096, {100, 512}});
    shapes.push_back({13824, 5120, {65, 300}});
  }
  for (const LinearShape& shape : shapes) {
    Random random;
    const Weights weights = Weights::Binary(random, shape.in, shape.out);
    for (const int tokens : shape.tokens) {
      SCOPED_TRACE(testing::Message() << shape.in << " to " << shape.out << ", "
                                      << tokens << " tokens");
      const double error = ErrorOfFastLinear(GetParam(), weights, tokens);
      if (tokens <= kFastRows) {
        EXPECT_EQ(error, 0.0);
      } else {
        EXPECT_GT(error, 0.0);
        EXPECT_LE(error, 5e-4);
      }
    }
  }
}

// The library has an order of sums, and kernels, of its own: what one of the
// two gets wrong, the other does not.
TEST_P(CudaBackendTest, AFloat16LinearOfManyRowsIsNearThatOfCublas) {
  TestBackend fast{GetParam()};
  fast.fast_linear = true;
  if (const std::string note = Get(fast.Create())->note(); !note.empty()) {
    GTEST_SKIP() << note;
  }
  std::vector<LinearShape> shapes = {{520, 70, {64, 65, 130}}};
  if (GetParam() == "cuda") {
    shapes.push_back({4096, 4096, {65, 512, 2048}});
    shapes.push_back({11008, 4096, {100}});
    shapes.push_back({4096, 32000, {128}});
  }
  for (const LinearShape& shape : shapes) {
    Random random;
    const Weights weights = Weights::Float16(random, shape.in, shape.out);
    for (const int tokens : shape.tokens) {
      SCOPED_TRACE(testing::Message() << shape.in << " to " << shape.out << ", "
                                      << tokens << " tokens");
      const auto exact = RunLinear(TestBackend{GetParam()}, weights, tokens);
      const auto actual = RunLinear(fast, weights, tokens);
      if (tokens <= kFastRows) {
        EXPECT_TRUE(SameBits(actual, exact));
      } else {
        const double error = RelativeError(actual, exact);
        EXPECT_GT(error, 0.0);
        EXPECT_LE(error, 5e-4);
      }
    }
  }
}

// K and V of a sequence of `context` positions, and its last `count` queries.
struct Cache {
  Cache(const AttentionShape& shape, int context, int count,
        DType type = DType::kF16)
      : dtype(type),
        first(context - count),
        blocks((context + kBlockSize - 1) / kBlockSize),
        dims{static_cast<int64_t>(blocks.size()), shape.num_kv_heads,
             kBlockSize, shape.head_dim} {
    for (size_t i = 0; i < blocks.size(); ++i) {
      blocks[i] = static_cast<BlockId>(blocks.size() - 1 - i);
    }
    Random random;
    keys = Cells(random.Halves(dims.num_elements(), 1.0f));
    values = Cells(random.Halves(dims.num_elements(), 1.0f));
    q = random.Floats(int64_t{count} * shape.num_heads * shape.head_dim);
  }

  // The bytes of the cache's type.
  std::vector<uint8_t> Cells(const std::vector<uint16_t>& halves) const {
    std::vector<uint8_t> cells(halves.size() * SizeOf(dtype));
    if (dtype == DType::kF16) {
      std::memcpy(cells.data(), halves.data(), cells.size());
    } else {
      std::transform(
          halves.begin(), halves.end(), cells.begin(),
          [](uint16_t half) { return FloatToE4m3(HalfToFloat(half)); });
    }
    return cells;
  }

  DType dtype;
  int first;  // position of q
  std::vector<BlockId> blocks;
  Shape dims;
  std::vector<uint8_t> keys, values;
  std::vector<float> q;
};

// The queries of the `count` positions before `end`.
std::vector<float> RunAttention(const TestBackend& name,
                                const AttentionShape& shape, const Cache& cache,
                                int end, int count) {
  const auto backend = Get(name.Create());
  const Batch batch({{end - count, std::vector<TokenId>(count), cache.blocks}});
  const BatchView view = batch.View();
  const Shape rows{count, int64_t{shape.num_heads} * shape.head_dim};
  const Tensor keys =
      Get(backend->Upload({cache.keys.data(), cache.dtype, cache.dims}));
  const Tensor values =
      Get(backend->Upload({cache.values.data(), cache.dtype, cache.dims}));
  const float* queries = cache.q.data() + (end - count - cache.first) * rows[1];
  const Tensor q = Get(backend->Upload({queries, DType::kF32, rows}));
  const Tensor out = Get(backend->Allocate(DType::kF32, rows));
  BINARYMOS_CHECK(backend->Reserve(count, 1).ok());
  backend->BeginStep(view);
  backend->Attention(shape, q.view(), {keys.view(), values.view()}, out.view());
  std::vector<float> result(rows.num_elements());
  EXPECT_TRUE(backend->ReadBack(out.view(), std::span(result)).ok());
  EXPECT_TRUE(backend->EndStep().ok());
  return result;
}

// tests/engine/cuda/attention_test.cc derives what the halves and the sums in
// f32 lose: about 2^-22 of the scores' size, here below 8. A tensor core may
// lose more than one rounding per multiplication, which those tests know
// nothing of; 2^-17 would be eight times a bit of every product. Computed as
// for kFloat16Error: 0.05 of it, 0.11 as on Hopper, 0.20 at worst.
TEST_P(CudaBackendTest, AttentionIsNearThatOfTheCpu) {
  for (const AttentionShape& shape :
       {AttentionShape{2, 2, 128}, AttentionShape{8, 1, 64},
        AttentionShape{1, 1, 36}, AttentionShape{1, 1, 256}}) {
    for (const DType kv : {DType::kF16, DType::kF8E4M3}) {
      if (kv == DType::kF8E4M3 && shape.head_dim > 128) continue;
      for (const auto& [context, count] :
           {std::pair{1, 1}, {300, 1}, {700, 40}}) {
        SCOPED_TRACE(testing::Message()
                     << Name(kv) << ", " << shape.head_dim << ", " << context);
        const Cache cache(shape, context, count, kv);
        const auto cuda =
            RunAttention(TestBackend{GetParam()}, shape, cache, context, count);
        const auto cpu =
            RunAttention(TestBackend{"auto"}, shape, cache, context, count);
        EXPECT_LT(RelativeError(cuda, cpu), 0x1p-17);
      }
    }
  }
}

TEST_P(CudaBackendTest, AttentionOfChunksIsThatOfThePromptBitForBit) {
  for (const auto& [shape, kv] :
       {std::pair{AttentionShape{2, 2, 128}, DType::kF16},
        {AttentionShape{8, 1, 64}, DType::kF16},
        {AttentionShape{1, 1, 36}, DType::kF16},
        {AttentionShape{2, 1, 128}, DType::kF8E4M3},
        {AttentionShape{1, 1, 36}, DType::kF8E4M3}}) {
    const auto width = int64_t{shape.num_heads} * shape.head_dim;
    for (const int context : {70, 600}) {
      const Cache cache(shape, context, 60, kv);
      const auto whole =
          RunAttention(TestBackend{GetParam()}, shape, cache, context, 60);
      for (const auto& [end, count] :
           {std::pair{0, 1}, {1, 7}, {20, 33}, {59, 1}}) {
        const auto chunk = RunAttention(TestBackend{GetParam()}, shape, cache,
                                        context - end, count);
        const auto first = whole.begin() + (60 - end - count) * width;
        EXPECT_TRUE(
            SameBits(chunk, std::vector<float>(first, first + count * width)))
            << Name(kv) << ", " << shape.head_dim << ", " << context << ", "
            << count;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, CudaBackendTest,
                         testing::Values("emulated", "cuda"),
                         [](const auto& test) { return test.param; });

TEST(CpuBackendTest, FewerActivationBitsAreUsed) {
  const LayerWeights weights;
  MiniModel fine(TestBackend{"portable"}, weights);
  MiniModel coarse(TestBackend{"portable", 1, 8}, weights);
  EXPECT_NE(fine.Step(RaggedRows()), coarse.Step(RaggedRows()));
}

TEST(CpuBackendDeathTest, AnOperationOutsideAStepIsFatal) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto backend = TestBackend{"portable"}.Create();
  ASSERT_TRUE(backend.ok());
  EXPECT_DEATH((void)(*backend)->EndStep(), "EndStep outside a step");
}

}  // namespace
}  // namespace binarymos
