#include "bench/linear_bench.h"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/workload.h"
#include "engine/backend/backend_factory.h"
#include "engine/backend/host_resources.h"
#include "engine/core/buffer.h"
#include "engine/core/check.h"
#include "engine/core/float16.h"
#include "engine/core/thread_pool.h"

namespace binarymos {
namespace {

constexpr size_t kMiB = size_t{1} << 20;
// More than the last-level caches of the machines we know.
constexpr size_t kRotatedBytes = 320 * kMiB;
constexpr int kExperts = 4;
constexpr int kCallsOnDevice = 64;   // between two waits
constexpr double kMinSeconds = 0.2;  // of one run

struct LayerShape {
  int64_t in;
  int64_t out;
};
constexpr LayerShape kShapes[] = {{4096, 4096}, {4096, 11008}, {11008, 4096}};

ConstTensorView View(const std::vector<uint16_t>& half, Shape shape) {
  return {half.data(), DType::kF16, shape};
}

// Random weights of one layer, in the layout of the model directory.
class RandomLayer {
 public:
  RandomLayer(const std::string& kind, LayerShape shape) {
    tensors_.in_features = shape.in;
    tensors_.out_features = shape.out;
    if (kind == "float16") {
      tensors_.kind = LinearKind::kFloat16;
      weight_ = Normal(shape.in * shape.out, 0.02f);
      tensors_.weight = View(weight_, {shape.out, shape.in});
      return;
    }
    const int experts = kind == "onebit" ? 1 : kExperts;
    tensors_.num_experts = experts;
    sign_.resize(shape.out * shape.in / 8);
    for (uint8_t& byte : sign_) byte = static_cast<uint8_t>(random_());
    tensors_.sign = {sign_.data(), DType::kU8, {shape.out, shape.in / 8}};
    in_scale_ = Normal(experts * shape.in, 0.5f);
    tensors_.in_scale = View(in_scale_, {experts, shape.in});
    out_scale_ = Normal(experts * shape.out, 0.02f);
    tensors_.out_scale = View(out_scale_, {experts, shape.out});
    if (experts == 1) return;
    gate_ = Normal(experts * shape.in, 0.02f);
    tensors_.gate = View(gate_, {experts, shape.in});
  }

  const LinearTensors& tensors() const { return tensors_; }

 private:
  std::vector<uint16_t> Normal(int64_t size, float deviation) {
    std::normal_distribution<float> normal(0, deviation);
    std::vector<uint16_t> half(size);
    for (uint16_t& each : half) each = FloatToHalf(normal(random_));
    return half;
  }

  std::mt19937 random_{1};
  LinearTensors tensors_;
  std::vector<uint8_t> sign_;
  std::vector<uint16_t> weight_, gate_, in_scale_, out_scale_;
};

// Copies of one layer, enough of them to push each other out of the caches.
class RotatedLayer {
 public:
  static absl::StatusOr<std::shared_ptr<RotatedLayer>> Create(
      Backend& backend, const std::string& kind, LayerShape shape) {
    const RandomLayer layer(kind, shape);
    auto rotated = std::make_shared<RotatedLayer>();
    size_t bytes = 0;
    while (bytes < kRotatedBytes) {
      auto packed = backend.Pack(layer.tensors());
      if (!packed.ok()) return packed.status();
      bytes += (*packed)->bytes();
      rotated->copies_.push_back(*std::move(packed));
    }
    return rotated;
  }

  const PackedLinear& Next() {
    next_ = (next_ + 1) % copies_.size();
    return *copies_[next_];
  }

 private:
  std::vector<std::unique_ptr<PackedLinear>> copies_;
  size_t next_ = 0;
};

struct Activations {
  Tensor x;  // [tokens, in] f32
  Tensor y;  // [tokens, out] f32
};

absl::StatusOr<Activations> MakeActivations(Backend& backend, LayerShape shape,
                                            int tokens) {
  std::vector<float> host(tokens * shape.in);
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (float& each : host) each = normal(random);
  auto x = backend.Upload({host.data(), DType::kF32, {tokens, shape.in}});
  if (!x.ok()) return x.status();
  auto y = backend.Allocate(DType::kF32, {tokens, shape.out});
  if (!y.ok()) return y.status();
  return Activations{*std::move(x), *std::move(y)};
}

void SetRates(benchmark::State& state, double bytes, double multiply_adds) {
  using benchmark::Counter;
  const auto iterations = static_cast<double>(state.iterations());
  state.counters["GB/s"] = Counter(1e-9 * bytes * iterations, Counter::kIsRate);
  if (multiply_adds == 0) return;
  state.counters["GMAC/s"] =
      Counter(1e-9 * multiply_adds * iterations, Counter::kIsRate);
}

void MeasureLinear(benchmark::State& state, Backend& backend,
                   RotatedLayer& layer, const Activations& activations) {
  double bytes = 0, multiply_adds = 0;
  // A model enqueues many layers before it waits.
  const int calls =
      activations.x.view().device == Device::kHost ? 1 : kCallsOnDevice;
  while (state.KeepRunningBatch(calls)) {
    backend.BeginStep({});
    for (int i = 0; i < calls; ++i) {
      const PackedLinear& linear = layer.Next();
      backend.Linear(linear, activations.x.view(), Backend::Output::kStore,
                     activations.y.view(), {});
      bytes = static_cast<double>(linear.bytes());
      multiply_adds = static_cast<double>(activations.x.view().shape[0]) *
                      linear.in_features() * linear.out_features();
    }
    const absl::Status status = backend.EndStep();
    BINARYMOS_CHECK(status.ok()) << status.ToString();
  }
  SetRates(state, bytes, multiply_adds);
}

// What all threads together read from memory: the roof over one token.
void MeasureRead(benchmark::State& state, const Buffer& memory,
                 ThreadPool& pool) {
  const auto* words = static_cast<const uint64_t*>(memory.data());
  const auto count = static_cast<int64_t>(memory.bytes() / sizeof(*words));
  for ([[maybe_unused]] auto _ : state) {
    pool.ParallelFor(count, kMiB / sizeof(*words),
                     [words](int64_t begin, int64_t end) {
                       uint64_t sum = 0;
                       for (int64_t i = begin; i < end; ++i) sum += words[i];
                       benchmark::DoNotOptimize(sum);
                     });
  }
  SetRates(state, static_cast<double>(memory.bytes()), 0);
}

benchmark::internal::Benchmark* Configure(
    benchmark::internal::Benchmark* benchmark,
    const LinearBenchOptions& options) {
  return benchmark->UseRealTime()
      ->Unit(benchmark::kMicrosecond)
      ->MinTime(kMinSeconds)
      ->Repetitions(options.repeats)
      ->ReportAggregatesOnly(options.repeats > 1);
}

absl::Status RegisterLinear(const LinearBenchOptions& options,
                            const std::string& kind,
                            const std::shared_ptr<Backend>& backend) {
  for (const LayerShape shape : kShapes) {
    auto layer = RotatedLayer::Create(*backend, kind, shape);
    if (!layer.ok()) return layer.status();
    for (const int tokens : options.tokens) {
      auto activations = MakeActivations(*backend, shape, tokens);
      if (!activations.ok()) return activations.status();
      auto shared = std::make_shared<Activations>(*std::move(activations));
      const std::string name = absl::StrFormat("%s/%dx%d/tokens:%d", kind,
                                               shape.in, shape.out, tokens);
      Configure(benchmark::RegisterBenchmark(
                    name.c_str(),
                    [backend, layer = *layer, shared](benchmark::State& state) {
                      MeasureLinear(state, *backend, *layer, *shared);
                    }),
                options);
    }
  }
  return absl::OkStatus();
}

absl::Status RegisterRead(const LinearBenchOptions& options) {
  auto memory = Buffer::AllocateHost(kRotatedBytes);
  if (!memory.ok()) return memory.status();
  std::memset(memory->data(), 1, memory->bytes());
  auto shared = std::make_shared<Buffer>(*std::move(memory));
  auto pool = std::make_shared<ThreadPool>(
      options.num_threads > 0 ? options.num_threads : UsableCpus());
  Configure(
      benchmark::RegisterBenchmark("memory/read",
                                   [shared, pool](benchmark::State& state) {
                                     MeasureRead(state, *shared, *pool);
                                   }),
      options);
  return absl::OkStatus();
}

void RunRegistered(const LinearBenchOptions& options) {
  std::vector<std::string> flags = {
      "bench", "--benchmark_enable_random_interleaving=true",
      absl::StrCat("--benchmark_format=", options.json ? "json" : "console")};
  std::vector<char*> arguments;
  for (std::string& flag : flags) arguments.push_back(flag.data());
  int count = static_cast<int>(arguments.size());
  benchmark::Initialize(&count, arguments.data());
  benchmark::AddCustomContext("machine", MachineDescription());
  benchmark::RunSpecifiedBenchmarks();
  benchmark::ClearRegisteredBenchmarks();
  benchmark::Shutdown();
}

}  // namespace

absl::Status RunLinearBench(const LinearBenchOptions& options) {
  for (const std::string& kind : options.kinds) {
    if (kind != "binarymos" && kind != "onebit" && kind != "float16") {
      return absl::InvalidArgumentError(absl::StrCat(
          "unknown kind \"", kind, "\": binarymos, onebit or float16"));
    }
  }
  auto created = CreateBackend({.device = options.device,
                                .num_threads = options.num_threads,
                                .activation_bits = options.activation_bits});
  if (!created.ok()) return created.status();
  const std::shared_ptr<Backend> backend = *std::move(created);
  const int max_tokens =
      *std::max_element(options.tokens.begin(), options.tokens.end());
  if (auto status = backend->Reserve(max_tokens, 1); !status.ok()) {
    return status;
  }
  if (auto status = RegisterRead(options); !status.ok()) return status;
  for (const std::string& kind : options.kinds) {
    if (auto status = RegisterLinear(options, kind, backend); !status.ok()) {
      return status;
    }
  }
  benchmark::AddCustomContext("device", backend->description());
  RunRegistered(options);
  return absl::OkStatus();
}

}  // namespace binarymos
