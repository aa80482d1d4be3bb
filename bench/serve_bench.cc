#include "bench/serve_bench.h"

#include <array>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "bench/engine_bench.h"
#include "server/server.h"

namespace binarymos {
namespace {

absl::StatusOr<std::string> OutputOf(const std::string& command) {
  std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(command.c_str(), "r"),
                                             pclose);
  if (pipe == nullptr) {
    return absl::UnavailableError(absl::StrCat("cannot run ", command));
  }
  std::string output;
  std::array<char, 4096> chunk;
  while (size_t n = fread(chunk.data(), 1, chunk.size(), pipe.get())) {
    output.append(chunk.data(), n);
  }
  if (pclose(pipe.release()) != 0) {
    return absl::InternalError(absl::StrCat(command, " failed: ", output));
  }
  return output;
}

absl::StatusOr<RunResult> RunThroughServer(Server& server,
                                           const Workload& workload) {
  // By name: in popen's shell, /proc/self would be the shell.
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return absl::UnavailableError("/proc/self/exe cannot be read");
  const double cpu_before = ProcessCpuSeconds();
  absl::StatusOr<std::string> output = OutputOf(absl::StrCat(
      "'", program.string(), "' bench load --json --server 127.0.0.1:",
      server.grpc_port(), " --streams ", workload.streams, " --prompt-tokens ",
      workload.prompt_tokens, " --common-tokens ", workload.common_tokens,
      " --output-tokens ", workload.output_tokens, " --seed ", workload.seed));
  if (!output.ok()) return output.status();
  absl::StatusOr<RunResult> result = RunResultFromJson(*output);
  if (result.ok()) result->process_seconds = ProcessCpuSeconds() - cpu_before;
  return result;
}

// One engine, one side, every number of streams.
absl::StatusOr<std::vector<RunResult>> RunSide(const ServeBenchOptions& options,
                                               bool serve) {
  absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Load(options.engine);
  if (!engine.ok()) return engine.status();
  Engine& in_process = **engine;
  std::unique_ptr<Server> server;
  if (serve) {
    ServerConfig config;
    config.engine = options.engine;
    config.grpc_port = 0;
    config.http_port = -1;
    auto started = Server::StartWithEngine(config, *std::move(engine));
    if (!started.ok()) return started.status();
    server = *std::move(started);
  }
  std::vector<RunResult> results;
  for (const int streams : options.streams) {
    Workload workload = options.workload;
    workload.streams = streams;
    workload.seed = static_cast<uint32_t>(streams);  // rows share no prompt
    absl::StatusOr<RunResult> result = serve
                                           ? RunThroughServer(*server, workload)
                                           : RunOnEngine(in_process, workload);
    if (!result.ok()) return result.status();
    results.push_back(*std::move(result));
  }
  return results;
}

double Median(const std::vector<RunResult>& runs,
              double (*figure)(const RunResult&)) {
  std::vector<double> values;
  for (const RunResult& run : runs) values.push_back(figure(run));
  return Quantile(std::move(values), 0.5);
}

ServeBenchRow Summarize(int streams, const std::vector<RunResult>& engine,
                        const std::vector<RunResult>& serve) {
  const auto throughput = [](const RunResult& r) {
    return r.tokens_per_second();
  };
  const auto cpu = [](const RunResult& r) {
    return r.process_seconds_per_token();
  };
  ServeBenchRow row;
  row.streams = streams;
  row.num_tokens = serve.front().num_tokens;
  row.engine_tokens_per_second = Median(engine, throughput);
  row.serve_tokens_per_second = Median(serve, throughput);
  row.engine_cpu_per_token = Median(engine, cpu);
  row.serve_cpu_per_token = Median(serve, cpu);
  row.serve_ttft_p50 = Median(
      serve, [](const RunResult& r) { return Quantile(r.ttft_seconds, 0.5); });
  row.serve_itl_p50 = Median(
      serve, [](const RunResult& r) { return Quantile(r.itl_seconds, 0.5); });
  row.serve_itl_p99 = Median(
      serve, [](const RunResult& r) { return Quantile(r.itl_seconds, 0.99); });
  return row;
}

}  // namespace

absl::StatusOr<std::vector<ServeBenchRow>> RunServeBench(
    const ServeBenchOptions& options) {
  // [side][streams][repeat]
  std::array<std::vector<std::vector<RunResult>>, 2> runs;
  for (auto& side : runs) side.resize(options.streams.size());
  for (int repeat = 0; repeat < options.repeats; ++repeat) {
    for (const int turn : {0, 1}) {
      const int side = (repeat + turn) % 2;  // who goes first alternates
      auto results = RunSide(options, side == 1);
      if (!results.ok()) return results.status();
      for (size_t i = 0; i < results->size(); ++i) {
        runs[side][i].push_back(std::move((*results)[i]));
      }
    }
  }
  std::vector<ServeBenchRow> rows;
  for (size_t i = 0; i < options.streams.size(); ++i) {
    rows.push_back(Summarize(options.streams[i], runs[0][i], runs[1][i]));
  }
  return rows;
}

std::string ToJson(const RunResult& result) {
  return nlohmann::json{{"num_tokens", result.num_tokens},
                        {"wall_seconds", result.wall_seconds},
                        {"tokens_per_second", result.tokens_per_second()},
                        {"ttft_seconds", result.ttft_seconds},
                        {"itl_seconds", result.itl_seconds}}
      .dump();
}

absl::StatusOr<RunResult> RunResultFromJson(const std::string& json) {
  const auto parsed = nlohmann::json::parse(json, nullptr, false);
  if (parsed.is_discarded() || !parsed.contains("itl_seconds")) {
    return absl::InternalError(
        absl::StrCat("the load generator printed: ", json));
  }
  RunResult result;
  result.num_tokens = parsed["num_tokens"].get<int64_t>();
  result.wall_seconds = parsed["wall_seconds"].get<double>();
  result.ttft_seconds = parsed["ttft_seconds"].get<std::vector<double>>();
  result.itl_seconds = parsed["itl_seconds"].get<std::vector<double>>();
  return result;
}

}  // namespace binarymos
