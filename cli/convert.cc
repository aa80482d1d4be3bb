// binarymos convert: from a training checkpoint to a model directory.
#include "engine/convert.h"

#include <CLI/CLI.hpp>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_format.h"
#include "cli/command.h"
#include "cli/progress.h"
#include "cli/signals.h"

namespace binarymos {
namespace {

using Clock = std::chrono::steady_clock;

std::string Bytes(int64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (value >= 1e9) return absl::StrFormat("%.2f GB", value / 1e9);
  if (value >= 1e6) return absl::StrFormat("%.1f MB", value / 1e6);
  return absl::StrFormat("%.1f kB", value / 1e3);
}

void PrintZeros(const ConvertReport& report) {
  for (const ZeroCount& zero : report.zeros) {
    absl::PrintF("%s: %d exact zeros of %d weights became +1\n", zero.tensor,
                 zero.num_zeros, zero.num_elements);
  }
}

void PrintReport(const ConvertOptions& options, const ConvertReport& report,
                 Clock::duration time) {
  PrintZeros(report);
  if (report.num_flushed > 0) {
    absl::PrintF("%d values too small for float16 became 0\n",
                 report.num_flushed);
  }
  const std::string method =
      report.quant_method == "binarymos"
          ? absl::StrFormat("binarymos, %d experts", report.num_experts)
          : report.quant_method;
  absl::PrintF(
      "%s: %s, %d tensors; %s read, %s written, %d exact zeros; %.1f s, at "
      "most %s of anonymous memory\n",
      options.target, method, report.num_tensors, Bytes(report.source_bytes),
      Bytes(report.target_bytes), report.num_zeros,
      std::chrono::duration<double>(time).count(),
      Bytes(report.peak_anonymous_bytes));
  if (!report.has_tokenizer) {
    absl::FPrintF(stderr,
                  "binarymos: warning: %s has no tokenizer.model, which the "
                  "server needs; put it into %s before serving\n",
                  options.source, options.target);
  }
  if (options.method == "binarymos-init" || options.method == "onebit") {
    absl::FPrintF(stderr,
                  "binarymos: warning: these scales are not trained, and what "
                  "such a model writes is poor; quality needs training "
                  "(train/README.md)\n");
  }
}

int Run(ConvertOptions options) {
  std::atomic<bool> interrupted = false;
  const SignalWatcher signals([&interrupted] { interrupted = true; });
  const Clock::time_point start = Clock::now();
  absl::StatusOr<ConvertReport> report;
  {
    Progress progress(stderr, IsTerminal(stderr), start);
    options.on_progress = [&](const ConvertProgress& state) {
      const double fraction = state.total_bytes == 0
                                  ? 1.0
                                  : static_cast<double>(state.bytes_read) /
                                        static_cast<double>(state.total_bytes);
      progress.Update(fraction,
                      absl::StrFormat("%s of %s", Bytes(state.bytes_read),
                                      Bytes(state.total_bytes)),
                      Clock::now());
      return !interrupted;
    };
    report = ConvertModel(options);
  }
  if (!report.ok()) return Fail(report.status());
  PrintReport(options, *report, Clock::now() - start);
  return kExitOk;
}

}  // namespace

Command AddConvertCommand(CLI::App& app) {
  CLI::App* convert = app.add_subcommand(
      "convert", "Make a model directory from a training checkpoint");
  auto options = std::make_shared<ConvertOptions>();
  convert
      ->add_option("source", options->source,
                   "Directory with config.json and safetensors in F16, BF16 or "
                   "F32")
      ->required();
  convert->add_option("target", options->target, "Directory to write")
      ->required();
  convert
      ->add_option("--method", options->method,
                   "auto: pack a BinaryMoS checkpoint. Of a plain LLaMA: "
                   "binarymos-init or onebit (not trained: poor quality), or "
                   "float16")
      ->capture_default_str();
  convert
      ->add_option("--experts", options->num_experts,
                   "Experts of binarymos-init, 1 to 8")
      ->capture_default_str();
  convert->add_flag("--strict", options->strict,
                    "Refuse weights that are exactly zero, which have no sign");
  convert->add_flag("--force", options->force,
                    "Replace a model directory that is there already");
  convert
      ->add_option("--max-shard-size", options->max_shard_bytes,
                   "Tensors in one file: 4GB, 4GiB")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->capture_default_str();
  convert->footer(
      "The target appears whole or not at all; `binarymos serve --verify` "
      "checks it\nagainst its manifest.json.\n\n"
      "Exit codes: 0 ok, 1 not written, 2 usage.");
  return {convert, [options] { return Run(*options); }};
}

}  // namespace binarymos
