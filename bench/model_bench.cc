#include "bench/model_bench.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/bandwidth.h"
#include "bench/samples.h"
#include "bench/synthetic_model.h"
#include "bench/workload.h"
#include "engine/api/types.h"

namespace binarymos {
namespace {

constexpr int kMaxSamples = 200;

int BlocksFor(int positions) {
  return (positions + kBlockSize - 1) / kBlockSize;
}

// The last `count` of `context` positions of each of `sequences`, whose blocks
// are their own, one sequence after the other.
class Batch {
 public:
  Batch(int sequences, int context, int count, int vocab_size) {
    starts_.push_back(0);
    table_starts_.push_back(0);
    for (int s = 0; s < sequences; ++s) {
      const int first_block = s * BlocksFor(context);
      for (int p = context - count; p < context; ++p) {
        tokens_.push_back((s * 7919 + p * 104729) % vocab_size);
        positions_.push_back(p);
        slots_.push_back(int64_t{first_block} * kBlockSize + p);
      }
      starts_.push_back(static_cast<int32_t>(tokens_.size()));
      context_lens_.push_back(context);
      for (int i = 0; i < BlocksFor(context); ++i) {
        tables_.push_back(first_block + i);
      }
      table_starts_.push_back(static_cast<int32_t>(tables_.size()));
      logit_rows_.push_back(starts_.back() - 1);
    }
  }

  BatchView View() const {
    return {tokens_,       positions_, slots_,        starts_,
            context_lens_, tables_,    table_starts_, logit_rows_};
  }

 private:
  std::vector<TokenId> tokens_;
  std::vector<int32_t> positions_, starts_, context_lens_, table_starts_,
      logit_rows_;
  std::vector<int64_t> slots_;
  std::vector<BlockId> tables_;
};

struct Row {
  int sequences = 1;
  int context = 0;
  int tokens = 0;            // of a step
  double bytes = 0;          // that a step reads
  double multiply_adds = 0;  // of a step
  int steps = 1;             // that one sample holds
  std::function<absl::Status()> run;
  // By the device's clock, of every sample; empty where there is none.
  std::vector<double> device_seconds;
};

// Kilobytes of a line of /proc/self/smaps_rollup; 0 if there is none.
int64_t ResidentKilobytes(const std::string& name) {
  std::ifstream file("/proc/self/smaps_rollup");
  std::string word;
  int64_t kilobytes = 0;
  while (file >> word) {
    if (word == name + ":") {
      file >> kilobytes;
      break;
    }
  }
  return kilobytes;
}

class Report {
 public:
  static absl::StatusOr<Report> Create(const ModelBenchOptions& options,
                                       const std::string& name,
                                       Backend& backend) {
    Report report(options, backend);
    report.on_cuda_ = absl::StartsWith(backend.description(), "cuda");
    const auto bandwidth = MeasureBandwidth(options.backend, report.on_cuda_);
    if (!bandwidth.ok()) return bandwidth.status();
    report.bandwidth_ = *bandwidth;
    report.document_ = {{"benchmark", name},
                        {"shape", options.shape},
                        {"kv_cache_dtype", options.kv_cache_dtype},
                        {"machine", MachineDescription()},
                        {"device", backend.description()},
                        {"bandwidth_gb_per_s", 1e-9 * *bandwidth},
                        {"rows", nlohmann::json::array()}};
    if (options.json) return report;
    std::printf(
        "%s; %s\n%s, shape %s, KV cache in %s; the device %s %.1f GB/s; "
        "medians of %d alternating rounds\n"
        "%9s %8s %10s %21s %10s %10s %9s %7s %6s %7s %9s\n",
        MachineDescription().c_str(), backend.description().c_str(),
        name.c_str(), options.shape.c_str(), options.kv_cache_dtype.c_str(),
        report.does(), 1e-9 * *bandwidth, options.repeats, "sequences",
        "context", "ms", "least-most round", "p95 ms", "least ms", "tokens/s",
        "GB/s", "of it", "GMAC/s", "device ms");
    return report;
  }

  void LeaveOut(int sequences, int context) {
    const std::string note =
        absl::StrCat(sequences, " sequences of ", context,
                     " positions: left out, the KV cache does not fit");
    if (options_.json) {
      document_["left_out"].push_back(note);
    } else {
      std::printf("%s\n", note.c_str());
    }
  }

  void Add(Row row) { rows_.push_back(std::move(row)); }

  // Measures the rows and prints them.
  absl::Status Finish() {
    std::vector<std::function<absl::Status()>> steps;
    for (Row& row : rows_) {
      steps.push_back([this, &row] {
        absl::Status status = row.run();
        if (on_cuda_) row.device_seconds.push_back(backend_.device_seconds());
        return status;
      });
    }
    const auto samples = TakeAlternatingSamples(steps, options_.repeats,
                                                options_.seconds, kMaxSamples);
    if (!samples.ok()) return samples.status();
    for (size_t i = 0; i < rows_.size(); ++i) Print(rows_[i], (*samples)[i]);
    // The first probe may have met a busier machine, or a less busy one.
    const auto again = MeasureBandwidth(options_.backend, on_cuda_);
    if (!again.ok()) return again.status();
    document_["bandwidth_after_gb_per_s"] = 1e-9 * *again;
    document_["resident_kb"] = ResidentKilobytes("Rss");
    document_["huge_pages_kb"] = ResidentKilobytes("AnonHugePages");
    document_["note"] = backend_.note();
    if (options_.json) {
      std::printf("%s\n", document_.dump(2).c_str());
      return absl::OkStatus();
    }
    std::printf("Afterwards the device %s %.1f GB/s.\n", does(), 1e-9 * *again);
    if (!on_cuda_) {
      std::printf("%lld of %lld MiB resident are in huge pages.\n",
                  ResidentKilobytes("AnonHugePages") / 1024LL,
                  ResidentKilobytes("Rss") / 1024LL);
    }
    if (!backend_.note().empty()) std::printf("%s\n", backend_.note().c_str());
    return absl::OkStatus();
  }

 private:
  Report(const ModelBenchOptions& options, Backend& backend)
      : options_(options), backend_(backend) {}

  const char* does() const {
    return on_cuda_ ? "copies (read and written)" : "reads";
  }

  void Print(const Row& row, const AlternatingSamples& samples) {
    const double scale = 1.0 / row.steps;
    // Of the device alone: less than the host sees, warm-ups included.
    const double device =
        on_cuda_ ? scale * Quantile(row.device_seconds, 0.5) : 0;
    const double seconds = scale * Quantile(samples.rounds, 0.5);
    const double least_round = scale * Quantile(samples.rounds, 0);
    const double most_round = scale * Quantile(samples.rounds, 1);
    const double p95 = scale * Quantile(samples.all, 0.95);
    const double least = scale * Quantile(samples.all, 0);
    const double bytes = row.bytes / seconds;
    const double multiply_adds = row.multiply_adds / seconds;
    if (options_.json) {
      nlohmann::json entry = {{"sequences", row.sequences},
                              {"context", row.context},
                              {"tokens", row.tokens},
                              {"rounds", samples.rounds.size()},
                              {"median_ms", 1e3 * seconds},
                              {"least_round_ms", 1e3 * least_round},
                              {"most_round_ms", 1e3 * most_round},
                              {"p95_ms", 1e3 * p95},
                              {"least_ms", 1e3 * least},
                              {"tokens_per_s", row.tokens / seconds},
                              {"gb_per_s", 1e-9 * bytes},
                              {"gmac_per_s", 1e-9 * multiply_adds}};
      if (on_cuda_) entry["device_ms"] = 1e3 * device;
      document_["rows"].push_back(std::move(entry));
      return;
    }
    std::printf(
        "%9d %8d %10.4f %10.4f-%10.4f %10.4f %10.4f %9.1f %7.1f %5.0f%% "
        "%7.1f %9s\n",
        row.sequences, row.context, 1e3 * seconds, 1e3 * least_round,
        1e3 * most_round, 1e3 * p95, 1e3 * least, row.tokens / seconds,
        1e-9 * bytes, 100 * bytes / bandwidth_, 1e-9 * multiply_adds,
        on_cuda_ ? absl::StrFormat("%.4f", 1e3 * device).c_str() : "-");
  }

  ModelBenchOptions options_;
  Backend& backend_;
  bool on_cuda_ = false;
  double bandwidth_ = 0;
  std::vector<Row> rows_;
  nlohmann::json document_;
};

int Largest(const std::vector<int>& values) {
  return values.empty() ? 0 : *std::max_element(values.begin(), values.end());
}

// The linears that every step computes: all but the table of embeddings.
std::vector<const PackedLinear*> BlockLinearsOf(const LlamaModel& model) {
  std::vector<const PackedLinear*> linears;
  for (const LlamaLayerWeights& layer : model.weights().layers) {
    linears.insert(linears.end(),
                   {layer.q_proj.get(), layer.k_proj.get(), layer.v_proj.get(),
                    layer.o_proj.get(), layer.gate_proj.get(),
                    layer.up_proj.get(), layer.down_proj.get()});
  }
  return linears;
}

double WeightsOf(const PackedLinear& linear) {
  return static_cast<double>(linear.in_features()) *
         static_cast<double>(linear.out_features());
}

// A step of this batch, greedy.
Row StepRow(SyntheticModel& synthetic, int sequences, int context, int count) {
  const LlamaModel& model = synthetic.model();
  auto batch = std::make_shared<Batch>(sequences, context, count,
                                       model.config().vocab_size);
  const PackedLinear& output = model.weights().output();
  Row row{.sequences = sequences,
          .context = context,
          .tokens = sequences * count,
          .bytes = static_cast<double>(output.bytes()),
          .multiply_adds = sequences * WeightsOf(output)};
  for (const PackedLinear* linear : BlockLinearsOf(model)) {
    row.bytes += static_cast<double>(linear->bytes());
    row.multiply_adds += row.tokens * WeightsOf(*linear);
  }
  if (count == 1) {
    row.bytes += static_cast<double>(sequences) * context *
                 synthetic.kv_cache().shape().bytes_per_token();
  }
  row.run = [&synthetic, batch] {
    const BatchView view = batch->View();
    std::vector<int32_t> ids(view.num_logit_rows());
    Backend& backend = synthetic.backend();
    LlamaModel& llama = synthetic.model();
    backend.BeginStep(view);
    llama.Forward(view, synthetic.kv_cache().layers(), /*sum_gates=*/false,
                  nullptr);
    absl::Status status =
        backend.ArgMax(llama.Logits(0, view.num_logit_rows()), std::span(ids));
    status.Update(backend.EndStep());
    if (status.ok() && std::count(ids.begin(), ids.end(), -1) > 0) {
      return absl::InternalError("logits are not finite");
    }
    return status;
  };
  return row;
}

// What the attention of a batch needs besides the cache.
struct AttentionInput {
  Batch batch;
  Tensor q, out;
};

// Attention of this batch, layer after layer; a row is of one layer.
absl::StatusOr<Row> AttentionRow(SyntheticModel& synthetic, int sequences,
                                 int context, int count) {
  Backend& backend = synthetic.backend();
  const LlamaConfig& config = synthetic.model().config();
  auto input = std::make_shared<AttentionInput>(AttentionInput{
      Batch(sequences, context, count, config.vocab_size), {}, {}});
  const Shape rows{sequences * count, config.q_size()};
  std::vector<float> host(rows.num_elements());
  for (size_t i = 0; i < host.size(); ++i) {
    host[i] = static_cast<float>(i * 7919 % 2000) / 1000 - 1;
  }
  auto q = backend.Upload({host.data(), DType::kF32, rows});
  if (!q.ok()) return q.status();
  input->q = *std::move(q);
  auto out = backend.Allocate(DType::kF32, rows);
  if (!out.ok()) return out.status();
  input->out = *std::move(out);
  // A prompt reads less than these bytes, from the caches more often. Query i
  // of `count` sees context - count + 1 + i positions.
  const double seen =
      sequences * (count * (context - count) + 0.5 * count * (count + 1));
  return Row{.sequences = sequences,
             .context = context,
             .tokens = sequences * count,
             .bytes = static_cast<double>(sequences) * context *
                      synthetic.kv_cache().shape().bytes_per_token() /
                      config.num_layers,
             .multiply_adds = 2.0 * seen * config.q_size(),
             .steps = config.num_layers,
             .run = [&synthetic, input] {
               Backend& device = synthetic.backend();
               const LlamaConfig& llama = synthetic.model().config();
               const AttentionShape shape{llama.num_heads, llama.num_kv_heads,
                                          llama.head_dim};
               const BatchView view = input->batch.View();
               device.BeginStep(view);
               device.Repeat({input.get()}, [&] {
                 for (const KvLayer& layer : synthetic.kv_cache().layers()) {
                   device.Attention(shape, input->q.view(), layer,
                                    input->out.view());
                 }
               });
               return device.EndStep();
             }};
}

}  // namespace

absl::Status RunDecodeBench(const ModelBenchOptions& options) {
  const int batch = Largest(options.batches);
  const int context = Largest(options.contexts);
  auto synthetic =
      SyntheticModel::Create({.shape = options.shape,
                              .backend = options.backend,
                              .head = options.head,
                              .max_tokens = batch,
                              .max_logit_rows = batch,
                              .num_blocks = batch * BlocksFor(context),
                              .kv_cache_dtype = options.kv_cache_dtype});
  if (!synthetic.ok()) return synthetic.status();
  const LlamaConfig& config = (*synthetic)->model().config();
  if (context > config.max_position_embeddings) {
    return absl::InvalidArgumentError(
        absl::StrCat("context ", context, ", but the shape has ",
                     config.max_position_embeddings, " positions"));
  }
  absl::Status status = (*synthetic)->FillCache();
  if (!status.ok()) return status;
  auto report = Report::Create(options, "decode", (*synthetic)->backend());
  if (!report.ok()) return report.status();
  for (const int length : options.contexts) {
    for (const int count : options.batches) {
      if (count * BlocksFor(length) > (*synthetic)->kv_cache().num_blocks()) {
        report->LeaveOut(count, length);
        continue;
      }
      report->Add(StepRow(**synthetic, count, length, 1));
    }
  }
  return report->Finish();
}

absl::Status RunPrefillBench(const ModelBenchOptions& options) {
  const int longest = Largest(options.prompts);
  auto synthetic =
      SyntheticModel::Create({.shape = options.shape,
                              .backend = options.backend,
                              .head = options.head,
                              .max_tokens = longest,
                              .max_logit_rows = 1,
                              .num_blocks = BlocksFor(longest),
                              .kv_cache_dtype = options.kv_cache_dtype});
  if (!synthetic.ok()) return synthetic.status();
  auto report = Report::Create(options, "prefill", (*synthetic)->backend());
  if (!report.ok()) return report.status();
  const LlamaConfig& config = (*synthetic)->model().config();
  for (const int length : options.prompts) {
    if (BlocksFor(length) > (*synthetic)->kv_cache().num_blocks() ||
        length > config.max_position_embeddings) {
      report->LeaveOut(1, length);
      continue;
    }
    report->Add(StepRow(**synthetic, 1, length, length));
  }
  return report->Finish();
}

absl::Status RunAttentionBench(const ModelBenchOptions& options) {
  const int batch = Largest(options.batches);
  const int context =
      std::max(Largest(options.contexts), Largest(options.prompts));
  auto synthetic = SyntheticModel::Create(
      {.shape = options.shape,
       .backend = options.backend,
       .max_tokens = std::max(batch, Largest(options.prompts)),
       .max_logit_rows = 1,
       .num_blocks = batch * BlocksFor(context),
       .kv_cache_dtype = options.kv_cache_dtype});
  if (!synthetic.ok()) return synthetic.status();
  absl::Status status = (*synthetic)->FillCache();
  if (!status.ok()) return status;
  auto report = Report::Create(options, "attention", (*synthetic)->backend());
  if (!report.ok()) return report.status();
  const auto add = [&](int sequences, int length, int count) {
    if (sequences * BlocksFor(length) > (*synthetic)->kv_cache().num_blocks()) {
      report->LeaveOut(sequences, length);
      return absl::OkStatus();
    }
    auto row = AttentionRow(**synthetic, sequences, length, count);
    if (!row.ok()) return row.status();
    report->Add(*std::move(row));
    return absl::OkStatus();
  };
  for (const int length : options.contexts) {
    for (const int count : options.batches) {
      if (status = add(count, length, 1); !status.ok()) return status;
    }
  }
  for (const int length : options.prompts) {
    if (status = add(1, length, length); !status.ok()) return status;
  }
  return report->Finish();
}

}  // namespace binarymos
