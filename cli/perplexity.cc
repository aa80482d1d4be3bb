// binarymos perplexity: how well a model predicts a text.
#include "engine/perplexity.h"

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/command.h"
#include "cli/progress.h"
#include "engine/engine.h"

namespace binarymos {
namespace {

using Clock = std::chrono::steady_clock;

struct PerplexityCommand {
  EngineOptions engine;
  PerplexityOptions options;
  std::string file;
  std::string stride = "none";
  bool json = false;
};

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (file) text << file.rdbuf();
  if (!file || !text) {
    return absl::NotFoundError(absl::StrCat("cannot read ", path));
  }
  return std::move(text).str();
}

void Print(const PerplexityCommand& command, const PerplexityResult& result) {
  if (command.json) {
    absl::PrintF(
        "{\"perplexity\": %.6f, \"window\": %d, \"windows\": %d, "
        "\"tokens\": %d, \"text_tokens\": %d, \"seconds\": %.3f, "
        "\"tokens_per_second\": %.1f}\n",
        result.perplexity, result.window, result.num_windows,
        result.tokens_used, result.num_tokens, result.seconds,
        result.tokens_per_second());
    return;
  }
  absl::PrintF(
      "perplexity %.4f (%d windows of %d, %d of %d tokens, %.1f s, %.1f "
      "tokens/s)\n",
      result.perplexity, result.num_windows, result.window, result.tokens_used,
      result.num_tokens, result.seconds, result.tokens_per_second());
}

int Run(PerplexityCommand command) {
  const absl::StatusOr<std::string> text = ReadText(command.file);
  if (!text.ok()) return Fail(text.status());
  // One sequence; windows may be longer than the model's own positions where
  // its rotation scaling allows it, which Load checks.
  command.engine.max_num_seqs = 1;
  command.engine.gate_sample_interval = 0;
  const absl::StatusOr<std::unique_ptr<Engine>> engine =
      Engine::Load(command.engine);
  if (!engine.ok()) return Fail(engine.status());
  absl::StatusOr<PerplexityResult> result;
  {
    Progress progress(stderr, IsTerminal(stderr), Clock::now());
    command.options.on_progress = [&](const PerplexityProgress& state) {
      progress.Update(
          static_cast<double>(state.tokens_done) /
              static_cast<double>(state.total_tokens),
          state.perplexity > 0
              ? absl::StrFormat("perplexity so far %.3f", state.perplexity)
              : absl::StrFormat("%d tokens", state.tokens_done),
          Clock::now());
    };
    result = MeasurePerplexity(**engine, *text, command.options);
  }
  if (!result.ok()) return Fail(result.status());
  Print(command, *result);
  return kExitOk;
}

void AddEngineFlags(CLI::App& perplexity, EngineOptions& engine) {
  perplexity
      .add_option("--device", engine.device, "auto, cpu, cuda or cuda:<n>")
      ->capture_default_str();
  perplexity
      .add_option("--threads", engine.num_threads,
                  "CPU threads; 0: all available")
      ->capture_default_str();
  perplexity
      .add_option("--cpu-kernels", engine.cpu_kernels,
                  "auto, amx, avx512, avx2, neon, portable or reference")
      ->capture_default_str();
  perplexity
      .add_option("--activation-bits", engine.activation_bits,
                  "8, 12, 14 or 16; 0: 14 on CPU, 16 on CUDA")
      ->capture_default_str();
  perplexity
      .add_option("--lm-head", engine.lm_head,
                  "f16; or int8: half of its bytes, not exact, not on CUDA")
      ->capture_default_str();
  perplexity
      .add_option("--max-model-len", engine.max_model_len,
                  "For models with rotation scaling; 0: the model's")
      ->capture_default_str();
  perplexity.add_flag("--cuda-wgmma", engine.cuda_wgmma,
                      "Linears of several tokens by the instruction of a "
                      "warpgroup, where the device has it (CUDA)");
  perplexity.add_flag("--fast-linear", engine.fast_linear,
                      "Linears of more than 64 tokens in a step faster and not "
                      "exact (CUDA)");
  perplexity
      .add_option("--kv-cache-dtype", engine.kv_cache_dtype,
                  "f16; fp8_e4m3: half of its memory, less precise; or f32: "
                  "for comparisons")
      ->capture_default_str();
  perplexity.add_flag("--verify", engine.verify,
                      "Compare every file with the model's manifest.json "
                      "first");
}

}  // namespace

Command AddPerplexityCommand(CLI::App& app) {
  CLI::App* perplexity = app.add_subcommand(
      "perplexity", "Measure how well a model predicts a text");
  auto command = std::make_shared<PerplexityCommand>();
  perplexity->add_option("model", command->engine.model_dir, "Model directory")
      ->required();
  perplexity->add_option("file", command->file, "UTF-8 text")->required();
  perplexity
      ->add_option("--window", command->options.window,
                   "Tokens; 0: min(2048, the model's positions)")
      ->capture_default_str();
  perplexity
      ->add_option("--stride", command->stride,
                   "Windows do not overlap: none is the only value")
      ->check(CLI::IsMember({"none"}))
      ->capture_default_str();
  AddEngineFlags(*perplexity, command->engine);
  perplexity->add_flag("--json", command->json, "Print one JSON object");
  perplexity->footer(
      "exp of the mean, over the full non-overlapping windows, of each "
      "window's mean\nnegative log-likelihood; BOS once, at the start of the "
      "text.\n\n"
      "Exit codes: 0 ok, 1 not measured, 2 usage.");
  return {perplexity, [command] { return Run(*command); }};
}

}  // namespace binarymos
