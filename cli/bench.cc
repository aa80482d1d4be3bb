// binarymos bench: figures, each with the machine and the commit it is from.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "bench/engine_bench.h"
#include "bench/fleet_bench.h"
#include "bench/linear_bench.h"
#include "bench/load_client.h"
#include "bench/model_bench.h"
#include "bench/scheduler_bench.h"
#include "bench/serve_bench.h"
#include "bench/workload.h"
#include "cli/command.h"
#include "engine/engine.h"
#include "engine/synthesize.h"
#include "server/logging.h"

namespace binarymos {
namespace {

struct BenchOptions {
  EngineOptions engine;
  std::string shape;             // synthesize one, if no model is given
  std::string server;            // of `load`
  std::optional<uint32_t> seed;  // of `load`; none: a random one
  Workload workload;
  EngineBenchOptions in_process;
  LinearBenchOptions linear;
  ModelBenchOptions model;
  std::vector<int> streams = {1, 16};
  std::vector<int> running = {16, 64, 256};
  int waiting = 1024;
  int steps = 1000;
  FleetBenchOptions fleet;
  std::vector<double> rates = {5, 10, 15, 20, 25};
  int repeats = 5;
  bool json = false;
};

// A directory that is removed when the benchmark ends.
class TemporaryModel {
 public:
  ~TemporaryModel() {
    std::error_code ignored;
    if (!dir_.empty()) std::filesystem::remove_all(dir_, ignored);
  }
  // Path of a random model of this shape.
  absl::StatusOr<std::string> Create(const std::string& shape) {
    std::string name =
        (std::filesystem::temp_directory_path() / "binarymos-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) {
      return absl::UnavailableError("cannot create a temporary directory");
    }
    dir_ = name;
    auto parameters = SyntheticShapeByName(shape);
    if (!parameters.ok()) return parameters.status();
    std::string model = name + "/model";
    const absl::Status status = SynthesizeModel(model, *parameters, /*seed=*/0);
    if (!status.ok()) return status;
    return model;
  }

 private:
  std::string dir_;
};

// Fills in engine.model_dir, from a synthesized model if none was given.
absl::Status PrepareModel(BenchOptions& options, TemporaryModel& temporary) {
  if (!options.engine.model_dir.empty()) return absl::OkStatus();
  auto model = temporary.Create(options.shape);
  if (!model.ok()) return model.status();
  options.engine.model_dir = *model;
  return absl::OkStatus();
}

int RunEngine(BenchOptions& options) {
  TemporaryModel temporary;
  if (auto status = PrepareModel(options, temporary); !status.ok()) {
    return Fail(status);
  }
  auto engine = Engine::Load(options.engine);
  if (!engine.ok()) return Fail(engine.status());
  std::printf("%s; %s\n", MachineDescription().c_str(),
              (*engine)->info().device.c_str());
  std::printf("%8s %12s %12s %12s %12s %14s\n", "streams", "tokens/s",
              "ITL p50 ms", "TTFT p50 ms", "TTFT p99 ms", "prompt tokens");
  for (const int streams : options.streams) {
    options.workload.streams = streams;
    std::vector<double> rates, intervals, first, last_first;
    int64_t num_prompt_tokens = 0;
    for (int i = 0; i < options.repeats; ++i) {
      auto run = RunOnEngine(**engine, options.workload, options.in_process);
      if (!run.ok()) return Fail(run.status());
      rates.push_back(run->tokens_per_second());
      intervals.push_back(Quantile(run->itl_seconds, 0.5));
      first.push_back(Quantile(run->ttft_seconds, 0.5));
      last_first.push_back(Quantile(run->ttft_seconds, 0.99));
      num_prompt_tokens = run->num_prompt_tokens;
    }
    std::printf("%8d %12.1f %12.3f %12.3f %12.3f %14lld\n", streams,
                Quantile(rates, 0.5), 1e3 * Quantile(intervals, 0.5),
                1e3 * Quantile(first, 0.5), 1e3 * Quantile(last_first, 0.5),
                static_cast<long long>(num_prompt_tokens));
  }
  return kExitOk;
}

int RunServe(BenchOptions& options) {
  TemporaryModel temporary;
  if (auto status = PrepareModel(options, temporary); !status.ok()) {
    return Fail(status);
  }
  // Lines about requests would stand among the rows.
  if (auto status = InitLogging({.level = "warn"}); !status.ok()) {
    return Fail(status);
  }
  const ServeBenchOptions serve{options.engine, options.streams,
                                options.workload, options.repeats};
  auto rows = RunServeBench(serve);
  if (!rows.ok()) return Fail(rows.status());
  std::printf("%s; medians of %d alternating runs\n",
              MachineDescription().c_str(), options.repeats);
  std::printf("%8s %8s %12s %12s %8s %14s %14s %12s %12s\n", "streams",
              "tokens", "engine tok/s", "serve tok/s", "ratio", "engine us/tok",
              "serve us/tok", "ITL p50 ms", "ITL p99 ms");
  for (const ServeBenchRow& row : *rows) {
    std::printf("%8d %8lld %12.1f %12.1f %7.1f%% %14.1f %14.1f %12.3f %12.3f\n",
                row.streams, static_cast<long long>(row.num_tokens),
                row.engine_tokens_per_second, row.serve_tokens_per_second,
                100 * row.ratio(), 1e6 * row.engine_cpu_per_token,
                1e6 * row.serve_cpu_per_token, 1e3 * row.serve_itl_p50,
                1e3 * row.serve_itl_p99);
  }
  return kExitOk;
}

int RunLoad(const BenchOptions& options) {
  Workload workload = options.workload;
  workload.seed = options.seed.value_or(std::random_device{}());
  const auto run = RunOnServer(options.server, workload);
  if (!run.ok()) return Fail(run.status());
  if (options.json) {
    std::printf("%s\n", ToJson(*run).c_str());
    return kExitOk;
  }
  std::printf("%d streams, %lld tokens, seed %u, %.2f s: %.1f tokens/s\n",
              workload.streams, static_cast<long long>(run->num_tokens),
              workload.seed, run->wall_seconds, run->tokens_per_second());
  for (const double quantile : {0.5, 0.95, 0.99}) {
    std::printf("p%.0f: TTFT %.2f ms, ITL %.3f ms\n", 100 * quantile,
                1e3 * Quantile(run->ttft_seconds, quantile),
                1e3 * Quantile(run->itl_seconds, quantile));
  }
  return kExitOk;
}

int RunFleet(const BenchOptions& options) {
  FleetBenchOptions fleet = options.fleet;
  const StepCostModel& cost = fleet.cost;
  std::printf(
      "\nOn a virtual clock, a step taking %g us + %g per token + %g per "
      "sampled "
      "row + %g per position read;\n%d requests, goodput with a first token in "
      "%g s and the others in %g s each\n",
      cost.fixed_us, cost.token_us, cost.sampled_row_us, cost.context_token_us,
      fleet.num_requests, fleet.first_token_slo_seconds,
      fleet.token_slo_seconds);
  std::printf("%8s %10s %10s %10s %11s %11s %10s %10s %10s %8s %8s\n", "req/s",
              "tokens/s", "done/s", "goodput/s", "TTFT p50 ms", "TTFT p99 ms",
              "ITL p50 ms", "ITL p99 ms", "tok/step", "refused", "preempt");
  for (const double rate : options.rates) {
    fleet.rate = rate;
    const FleetBenchRow row = BenchFleet(fleet);
    std::printf(
        "%8g %10.1f %10.2f %10.2f %11.1f %11.1f %10.2f %10.2f %10.1f %8d "
        "%8lld\n",
        row.rate, row.tokens_per_second, row.requests_per_second,
        row.good_requests_per_second, 1e3 * row.ttft_p50, 1e3 * row.ttft_p99,
        1e3 * row.itl_p50, 1e3 * row.itl_p99, row.tokens_per_step,
        row.num_refused, row.num_preemptions);
  }
  return kExitOk;
}

int RunScheduler(const BenchOptions& options) {
  std::printf("%s\n%8s %8s %8s %12s %12s\n", MachineDescription().c_str(),
              "running", "waiting", "steps", "median us", "p99 us");
  for (const int running : options.running) {
    const SchedulerBenchRow row =
        BenchScheduler(running, options.waiting, options.steps);
    std::printf("%8d %8d %8d %12.2f %12.2f\n", row.num_running, row.num_waiting,
                row.num_steps, row.median_us, row.p99_us);
  }
  return RunFleet(options);
}

int Exit(const absl::Status& status) {
  return status.ok() ? kExitOk : Fail(status);
}

int RunLinear(const BenchOptions& options) {
  return Exit(RunLinearBench(options.linear));
}

void AddBackendFlags(CLI::App& app, BackendOptions& backend) {
  app.add_option("--device", backend.device, "auto, cpu, cuda[:n]");
  app.add_option("--threads", backend.num_threads, "CPU threads; 0: all")
      ->check(CLI::NonNegativeNumber);
  app.add_flag("--cpu-pin", backend.cpu_pin,
               "Each CPU thread but one keeps to one CPU");
  app.add_option("--cpu-kernels", backend.cpu_kernels,
                 "auto, amx, avx512, avx2, neon, portable or reference")
      ->capture_default_str();
  app.add_option("--activation-bits", backend.activation_bits,
                 "8, 12, 14 or 16; 0: the device's default");
  app.add_flag("--cuda-clusters,!--no-cuda-clusters", backend.cuda_clusters,
               "A linear of one token in one launch (CUDA)");
  app.add_flag("--cuda-overlap,!--no-cuda-overlap", backend.cuda_overlap,
               "Kernels begin before the one ahead ends (CUDA)");
  app.add_flag("--cuda-wgmma", backend.cuda_wgmma,
               "Linears of several rows by the instruction of a warpgroup, "
               "where the device has it (CUDA)");
  app.add_flag("--fast-linear", backend.fast_linear,
               "Linears of more than 64 rows faster and not exact (CUDA)");
}

void AddLinearFlags(CLI::App& app, LinearBenchOptions& options) {
  AddBackendFlags(app, options.backend);
  app.add_option("--kinds", options.kinds, "binarymos, onebit, float16");
  app.add_option("--tokens", options.tokens, "One row for each number")
      ->check(CLI::PositiveNumber);
  app.add_option("--repeats", options.repeats)->check(CLI::PositiveNumber);
  app.add_flag("--json", options.json);
}

void AddModelFlags(CLI::App& app, ModelBenchOptions& options) {
  app.add_option("--shape", options.shape,
                 "tiny, 1b, 7b or 13b, random weights")
      ->capture_default_str();
  AddBackendFlags(app, options.backend);
  app.add_flag("--cuda-graphs,!--no-cuda-graphs", options.backend.cuda_graphs,
               "Replay recorded steps (CUDA)");
  app.add_option("--kv-cache-dtype", options.kv_cache_dtype,
                 "f16, fp8_e4m3 or f32")
      ->capture_default_str();
  app.add_option("--seconds", options.seconds, "Time of one row, all rounds")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--repeats", options.repeats,
                 "Rounds, in each of which all rows have their turn")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_flag("--json", options.json);
}

void AddListFlag(CLI::App& app, const std::string& name,
                 std::vector<int>& values, const std::string& help) {
  app.add_option(name, values, help)
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
}

void AddEngineFlags(CLI::App& app, BenchOptions& options) {
  app.add_option("--model", options.engine.model_dir, "Model directory");
  app.add_option("--shape", options.shape,
                 "Without --model: random weights, tiny, 1b, 7b or 13b")
      ->default_val("tiny");
  app.add_option("--device", options.engine.device, "auto, cpu, cuda[:n]");
  app.add_option("--threads", options.engine.num_threads,
                 "CPU threads; 0: all");
  app.add_option("--overlap", options.engine.overlap,
                 "Plan a step while one is computed: auto, on or off");
  app.add_option("--max-num-seqs", options.engine.max_num_seqs)
      ->check(CLI::Range(1, 1024));
}

void AddFleetFlags(CLI::App& app, BenchOptions& options) {
  FleetBenchOptions& fleet = options.fleet;
  app.add_option("--rates", options.rates,
                 "Requests per second; one row for each number")
      ->check(CLI::PositiveNumber);
  app.add_option("--requests", fleet.num_requests)->check(CLI::PositiveNumber);
  app.add_option("--prompt-tokens", fleet.prompt_tokens, "Median")
      ->check(CLI::Range(1, 100'000));
  app.add_option("--output-tokens", fleet.output_tokens, "Median")
      ->check(CLI::Range(1, 100'000));
  app.add_option("--common-tokens", fleet.common_tokens,
                 "That all prompts begin with")
      ->check(CLI::Range(0, 1024));
  app.add_option("--kv-blocks", fleet.cache.num_blocks)
      ->check(CLI::Range(256, 1 << 24));
  app.add_option("--max-num-seqs", fleet.cache.max_num_seqs)
      ->check(CLI::Range(1, 1024));
  app.add_option("--max-num-batched-tokens", fleet.cache.max_num_batched_tokens)
      ->check(CLI::PositiveNumber);
  app.add_option("--step-us", fleet.cost.fixed_us, "Cost of a step")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--token-us", fleet.cost.token_us, "And per token")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--sampled-row-us", fleet.cost.sampled_row_us,
                 "And per token sampled")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--context-token-us", fleet.cost.context_token_us,
                 "And per position read")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--ttft-slo", fleet.first_token_slo_seconds, "Seconds")
      ->check(CLI::PositiveNumber);
  app.add_option("--itl-slo", fleet.token_slo_seconds, "Seconds")
      ->check(CLI::PositiveNumber);
}

void AddWorkloadFlags(CLI::App& app, BenchOptions& options) {
  app.add_option("--prompt-tokens", options.workload.prompt_tokens)
      ->check(CLI::PositiveNumber);
  app.add_option("--common-tokens", options.workload.common_tokens,
                 "That all prompts begin with")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--output-tokens", options.workload.output_tokens)
      ->check(CLI::PositiveNumber);
}

}  // namespace

Command AddBenchCommand(CLI::App& app) {
  CLI::App* bench = app.add_subcommand("bench", "Measure");
  bench->require_subcommand(1);
  auto options = std::make_shared<BenchOptions>();

  CLI::App* engine =
      bench->add_subcommand("engine", "The serving loop without a server");
  CLI::App* serve = bench->add_subcommand(
      "serve", "The same workload in process and through gRPC, alternating");
  for (CLI::App* each : {engine, serve}) {
    AddEngineFlags(*each, *options);
    AddWorkloadFlags(*each, *options);
    each->add_option("--streams", options->streams, "One row for each number")
        ->check(CLI::PositiveNumber);
    each->add_option("--repeats", options->repeats)->check(CLI::PositiveNumber);
  }

  engine->add_flag("--prefix-cache,!--no-prefix-cache",
                   options->in_process.prefix_caching,
                   "Compute once what prompts have in common");
  engine
      ->add_option("--flood", options->in_process.flood,
                   "Streams of another tenant that are sent first, and are not"
                   " in the figures")
      ->check(CLI::NonNegativeNumber);

  CLI::App* linear = bench->add_subcommand(
      "linear", "One linear layer in the shapes of LLaMA 7B");
  AddLinearFlags(*linear, options->linear);

  CLI::App* decode = bench->add_subcommand(
      "decode", "Steps of one token per sequence, without a scheduler");
  CLI::App* prefill = bench->add_subcommand(
      "prefill", "Steps of one whole prompt, without a scheduler");
  CLI::App* attention =
      bench->add_subcommand("attention", "The attention of one layer");
  for (CLI::App* each : {decode, prefill, attention}) {
    AddModelFlags(*each, options->model);
  }
  for (CLI::App* each : {decode, prefill}) {
    each->add_option("--lm-head", options->model.head, "f16 or int8")
        ->transform(CLI::CheckedTransformer(std::map<std::string, LinearKind>{
            {"f16", LinearKind::kFloat16}, {"int8", LinearKind::kInt8}}));
  }
  for (CLI::App* each : {decode, attention}) {
    AddListFlag(*each, "--batch", options->model.batches,
                "Sequences; one row for each number");
    AddListFlag(*each, "--context", options->model.contexts,
                "Their positions; one row for each number");
  }
  for (CLI::App* each : {prefill, attention}) {
    AddListFlag(*each, "--prompt-tokens", options->model.prompts,
                "One row for each number");
  }

  CLI::App* load =
      bench->add_subcommand("load", "Load a running server with streams");
  load->add_option("--server", options->server)->default_val("127.0.0.1:9000");
  load->add_option("--streams", options->workload.streams)
      ->check(CLI::PositiveNumber);
  AddWorkloadFlags(*load, *options);
  load->add_option("--seed", options->seed,
                   "Of the prompts; one never used before, unless given, so "
                   "that the server's prefix cache does not know them");
  load->add_flag("--json", options->json);

  CLI::App* scheduler = bench->add_subcommand(
      "scheduler",
      "Schedule and Commit around a runner that costs nothing; then what one "
      "accelerator would serve, on a virtual clock");
  scheduler->add_option("--running", options->running)
      ->check(CLI::PositiveNumber);
  scheduler->add_option("--waiting", options->waiting)
      ->check(CLI::NonNegativeNumber);
  scheduler->add_option("--steps", options->steps)->check(CLI::PositiveNumber);
  AddFleetFlags(*scheduler, *options);

  return {bench, [=] {
            if (engine->parsed()) return RunEngine(*options);
            if (serve->parsed()) return RunServe(*options);
            if (load->parsed()) return RunLoad(*options);
            if (linear->parsed()) return RunLinear(*options);
            const ModelBenchOptions& model = options->model;
            if (decode->parsed()) return Exit(RunDecodeBench(model));
            if (prefill->parsed()) return Exit(RunPrefillBench(model));
            if (attention->parsed()) return Exit(RunAttentionBench(model));
            return RunScheduler(*options);
          }};
}

}  // namespace binarymos
