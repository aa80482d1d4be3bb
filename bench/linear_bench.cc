#include "bench/linear_bench.h"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/device_linear_bench.h"
#include "bench/rotated_layer.h"
#include "bench/workload.h"
#include "engine/backend/backend_factory.h"
#include "engine/backend/host_resources.h"
#include "engine/core/buffer.h"
#include "engine/core/check.h"
#include "engine/core/thread_pool.h"

namespace binarymos {
namespace {

constexpr size_t kMiB = size_t{1} << 20;
constexpr double kMinSeconds = 0.2;  // of one run
constexpr LayerShape kShapes[] = {{4096, 4096}, {4096, 11008}, {11008, 4096}};

void SetRates(benchmark::State& state, double bytes, double multiply_adds) {
  using benchmark::Counter;
  const auto iterations = static_cast<double>(state.iterations());
  state.counters["GB/s"] = Counter(1e-9 * bytes * iterations, Counter::kIsRate);
  if (multiply_adds == 0) return;
  state.counters["GMAC/s"] =
      Counter(1e-9 * multiply_adds * iterations, Counter::kIsRate);
}

void MeasureLinear(benchmark::State& state, Backend& backend,
                   RotatedLayer& layer, const LayerActivations& activations) {
  double bytes = 0, multiply_adds = 0;
  const BatchView empty;
  for ([[maybe_unused]] auto _ : state) {
    const PackedLinear& linear = layer.Next();
    backend.BeginStep(empty);
    backend.Linear(linear, activations.x.view(), Backend::Output::kStore,
                   activations.y.view(), {});
    const absl::Status status = backend.EndStep();
    BINARYMOS_CHECK(status.ok()) << status.ToString();
    bytes = static_cast<double>(linear.bytes());
    multiply_adds = static_cast<double>(activations.x.view().shape[0]) *
                    linear.in_features() * linear.out_features();
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
      auto activations = LayerActivations::Create(*backend, shape, tokens);
      if (!activations.ok()) return activations.status();
      auto shared = std::make_shared<LayerActivations>(*std::move(activations));
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
  auto pool = std::make_shared<ThreadPool>(options.backend.num_threads > 0
                                               ? options.backend.num_threads
                                               : UsableCpus());
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
    if (auto status = CheckLayerKind(kind); !status.ok()) return status;
  }
  BackendOptions backend_options = options.backend;
  backend_options.cuda_time_steps = true;
  auto created = CreateBackend(backend_options);
  if (!created.ok()) return created.status();
  const std::shared_ptr<Backend> backend = *std::move(created);
  const int max_tokens =
      *std::max_element(options.tokens.begin(), options.tokens.end());
  if (auto status = backend->Reserve(max_tokens, 1); !status.ok()) {
    return status;
  }
  if (absl::StartsWith(backend->description(), "cuda")) {
    return RunDeviceLinearBench(options, *backend);
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
