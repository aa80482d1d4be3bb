#include "bench/device_linear_bench.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "bench/cuda_baseline.h"
#include "bench/rotated_layer.h"
#include "bench/samples.h"
#include "bench/workload.h"
#include "engine/core/check.h"

namespace binarymos {
namespace {

constexpr int kWarmUps = 20;
constexpr int kSamples = 100;
constexpr size_t kCopyBytes = size_t{1} << 30;

struct PublishedShape {
  LayerShape shape;
  double published_us;          // BinaryMoS, by its authors, on their GPU
  double published_float16_us;  // the same for cuBLAS
};
constexpr PublishedShape kShapes[] = {
    {{4096, 4096}, 34.5, 68.2},   {{4096, 11008}, 36.9, 151.7},
    {{11008, 4096}, 37.0, 143.5}, {{5120, 5120}, 35.6, 95.6},
    {{5120, 13824}, 43.4, 224.1}, {{13824, 5120}, 44.5, 213.6},
};

// Enough calls that the launch of the graph does not matter.
int CallsPerSample(const std::string& kind, int tokens) {
  return tokens <= 8 && kind != "float16" ? 256 : 64;
}

struct Row {
  std::string kind;
  LayerShape shape;
  int tokens = 0;
  size_t bytes = 0;  // of weights
  Summary seconds;   // of one call, replayed
  double host_launched = 0;
  double published_us = 0;  // 0: none
};

// `count` calls as one sample. `replay`: as a recording, by the device's clock;
// else launched one after the other, by the host's.
absl::StatusOr<Summary> MeasureCalls(Backend& backend, RotatedLayer& layer,
                                     const LayerActivations& activations,
                                     int count, bool replay, int samples) {
  const auto calls = [&] {
    for (int i = 0; i < count; ++i) {
      backend.Linear(layer.Next(), activations.x.view(),
                     Backend::Output::kStore, activations.y.view(), {});
    }
  };
  const BatchView empty;
  const auto run = [&] {
    backend.BeginStep(empty);
    if (replay) {
      backend.Repeat({&layer, activations.y.view().data, count}, calls);
    } else {
      calls();
    }
    return backend.EndStep();
  };
  absl::StatusOr<std::vector<double>> taken =
      replay ? TakeDeviceSamples(backend, kWarmUps, samples, run)
             : TakeSamples(kWarmUps, samples, run);
  if (!taken.ok()) return taken.status();
  for (double& seconds : *taken) seconds /= count;
  return Summarize(*taken);
}

class Report {
 public:
  Report(const Backend& backend, bool json) : json_(json) {
    if (json_) {
      document_["machine"] = MachineDescription();
      document_["device"] = backend.description();
      return;
    }
    std::printf(
        "%s; %s\n%d samples of a CUDA graph of 64 or 256 calls each, by the "
        "device's clock, weights rotated over %zu MiB\n",
        MachineDescription().c_str(), backend.description().c_str(), kSamples,
        kRotatedBytes >> 20);
  }

  void Copy(const Summary& seconds) {
    copy_rate_ = 2.0 * kCopyBytes / seconds.median;
    if (json_) {
      document_["copy_gb_per_s"] = 1e-9 * copy_rate_;
      return;
    }
    std::printf("copy of 1 GiB on the device: %.0f GB/s, read and written\n",
                1e-9 * copy_rate_);
  }

  void Header() {
    if (json_) return;
    std::printf("%-10s %13s %6s %9s %9s %8s %6s %10s %10s\n", "kind",
                "in x out", "tokens", "us", "p95 us", "GB/s", "copy",
                "launch us", "published");
  }

  void Add(const Row& row) {
    const double rate = static_cast<double>(row.bytes) / row.seconds.median;
    if (json_) {
      nlohmann::json entry = {{"kind", row.kind},
                              {"in", row.shape.in},
                              {"out", row.shape.out},
                              {"tokens", row.tokens},
                              {"bytes", row.bytes},
                              {"median_us", 1e6 * row.seconds.median},
                              {"p95_us", 1e6 * row.seconds.p95},
                              {"least_us", 1e6 * row.seconds.least},
                              {"gb_per_s", 1e-9 * rate}};
      if (row.host_launched > 0) {
        entry["host_launched_us"] = 1e6 * row.host_launched;
      }
      if (row.published_us > 0) entry["published_us"] = row.published_us;
      document_["rows"].push_back(std::move(entry));
      return;
    }
    const auto optional = [](double value) {
      return value > 0 ? absl::StrFormat("%.2f", value) : std::string("-");
    };
    const std::string copy =
        copy_rate_ > 0 ? absl::StrFormat("%.0f%%", 100 * rate / copy_rate_)
                       : std::string("-");
    std::printf(
        "%-10s %13s %6d %9.2f %9.2f %8.0f %6s %10s %10s\n", row.kind.c_str(),
        absl::StrFormat("%d x %d", row.shape.in, row.shape.out).c_str(),
        row.tokens, 1e6 * row.seconds.median, 1e6 * row.seconds.p95,
        1e-9 * rate, copy.c_str(), optional(1e6 * row.host_launched).c_str(),
        optional(row.published_us).c_str());
    std::fflush(stdout);
  }

  void Note(const absl::Status& status) {
    if (json_) {
      document_["notes"].push_back(std::string(status.message()));
    } else {
      std::printf("%s\n", std::string(status.message()).c_str());
    }
  }

  void Finish() {
    if (json_) std::printf("%s\n", document_.dump(2).c_str());
  }

 private:
  const bool json_;
  double copy_rate_ = 0;
  nlohmann::json document_;
};

absl::Status MeasureOurs(const LinearBenchOptions& options, Backend& backend,
                         const std::string& kind, const PublishedShape& each,
                         Report& report) {
  auto layer = RotatedLayer::Create(backend, kind, each.shape);
  if (!layer.ok()) return layer.status();
  for (const int tokens : options.tokens) {
    auto activations = LayerActivations::Create(backend, each.shape, tokens);
    if (!activations.ok()) return activations.status();
    const int calls = CallsPerSample(kind, tokens);
    auto replayed = MeasureCalls(backend, **layer, *activations, calls,
                                 /*replay=*/true, kSamples);
    if (!replayed.ok()) return replayed.status();
    auto launched = MeasureCalls(backend, **layer, *activations, calls,
                                 /*replay=*/false, kSamples / 5);
    if (!launched.ok()) return launched.status();
    report.Add({.kind = kind,
                .shape = each.shape,
                .tokens = tokens,
                .bytes = (*layer)->Next().bytes(),
                .seconds = *replayed,
                .host_launched = launched->median,
                .published_us = kind == "binarymos" && tokens == 1
                                    ? each.published_us
                                    : 0});
  }
  return absl::OkStatus();
}

// cuBLAS may be missing: then there is a note and no row.
void MeasureCublas(const LinearBenchOptions& options, CudaBaseline& baseline,
                   Report& report) {
  for (const PublishedShape& each : kShapes) {
    for (const int tokens : options.tokens) {
      const int calls = CallsPerSample("float16", tokens);
      const auto samples = baseline.Float16Linear(
          each.shape.in, each.shape.out, tokens, {calls, kWarmUps, kSamples});
      if (!samples.ok()) return report.Note(samples.status());
      report.Add(
          {.kind = "cublas f16",
           .shape = each.shape,
           .tokens = tokens,
           .bytes = static_cast<size_t>(2 * each.shape.in * each.shape.out),
           .seconds = Summarize(*samples),
           .published_us = tokens == 1 ? each.published_float16_us : 0});
    }
  }
}

// What a launch costs that does nothing to speak of.
absl::Status MeasureLaunch(Backend& backend, Report& report) {
  auto x = backend.Allocate(DType::kF32, {1, 1});
  if (!x.ok()) return x.status();
  constexpr int kLaunches = 512;
  const BatchView empty;
  auto samples = TakeDeviceSamples(backend, kWarmUps, kSamples, [&] {
    backend.BeginStep(empty);
    backend.Repeat({&x, nullptr, kLaunches}, [&] {
      for (int i = 0; i < kLaunches; ++i) {
        backend.SwiGlu(x->view(), x->view(), x->view());
      }
    });
    return backend.EndStep();
  });
  if (!samples.ok()) return samples.status();
  for (double& seconds : *samples) seconds /= kLaunches;
  report.Add({.kind = "launch",
              .shape = {1, 1},
              .tokens = 1,
              .bytes = sizeof(float),
              .seconds = Summarize(*samples)});
  return absl::OkStatus();
}

}  // namespace

absl::Status RunDeviceLinearBench(const LinearBenchOptions& options,
                                  Backend& backend) {
  Report report(backend, options.json);
  int ordinal = 0;
  absl::string_view device = options.backend.device;
  if (absl::ConsumePrefix(&device, "cuda:")) {
    BINARYMOS_CHECK(absl::SimpleAtoi(device, &ordinal));
  }
  auto baseline = CudaBaseline::Create(ordinal);
  if (!baseline.ok()) return baseline.status();
  const auto copies = (*baseline)->Copy(kCopyBytes, {4, 5, 20});
  if (!copies.ok()) return copies.status();
  report.Copy(Summarize(*copies));
  report.Header();
  if (auto status = MeasureLaunch(backend, report); !status.ok()) return status;
  MeasureCublas(options, **baseline, report);
  for (const std::string& kind : options.kinds) {
    for (const PublishedShape& each : kShapes) {
      const absl::Status status =
          MeasureOurs(options, backend, kind, each, report);
      if (!status.ok()) return status;
    }
  }
  report.Finish();
  return absl::OkStatus();
}

}  // namespace binarymos
