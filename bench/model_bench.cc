#include "bench/model_bench.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
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
  int tokens = 0;    // of a step
  double bytes = 0;  // that a step reads
  Summary seconds;
};

class Report {
 public:
  static absl::StatusOr<Report> Create(const ModelBenchOptions& options,
                                       const std::string& name,
                                       const Backend& backend) {
    const bool on_cuda = absl::StartsWith(backend.description(), "cuda");
    const auto bandwidth = MeasureBandwidth(options.backend, on_cuda);
    if (!bandwidth.ok()) return bandwidth.status();
    Report report(*bandwidth, options.json);
    report.document_ = {{"benchmark", name},
                        {"shape", options.shape},
                        {"machine", MachineDescription()},
                        {"device", backend.description()},
                        {"bandwidth_gb_per_s", 1e-9 * *bandwidth},
                        {"rows", nlohmann::json::array()}};
    if (options.json) return report;
    std::printf(
        "%s; %s\n%s, shape %s; the device %s %.1f GB/s\n%9s %8s %10s %10s %10s "
        "%11s %9s %6s\n",
        MachineDescription().c_str(), backend.description().c_str(),
        name.c_str(), options.shape.c_str(),
        on_cuda ? "copies (read and written)" : "reads", 1e-9 * *bandwidth,
        "sequences", "context", "ms", "p95 ms", "least ms", "tokens/s", "GB/s",
        "of it");
    return report;
  }

  void Add(const Row& row) {
    const double rate = row.bytes / row.seconds.median;
    const double tokens = row.tokens / row.seconds.median;
    if (json_) {
      document_["rows"].push_back({{"sequences", row.sequences},
                                   {"context", row.context},
                                   {"tokens", row.tokens},
                                   {"median_ms", 1e3 * row.seconds.median},
                                   {"p95_ms", 1e3 * row.seconds.p95},
                                   {"least_ms", 1e3 * row.seconds.least},
                                   {"tokens_per_s", tokens},
                                   {"gb_per_s", 1e-9 * rate}});
      return;
    }
    std::printf("%9d %8d %10.4f %10.4f %10.4f %11.1f %9.1f %5.0f%%\n",
                row.sequences, row.context, 1e3 * row.seconds.median,
                1e3 * row.seconds.p95, 1e3 * row.seconds.least, tokens,
                1e-9 * rate, 100 * rate / bandwidth_);
    std::fflush(stdout);
  }

  void LeaveOut(int sequences, int context) {
    const std::string note =
        absl::StrCat(sequences, " sequences of ", context,
                     " positions: left out, the KV cache does not fit");
    if (json_) {
      document_["left_out"].push_back(note);
    } else {
      std::printf("%s\n", note.c_str());
    }
  }

  void Finish(const Backend& backend) {
    if (json_) {
      document_["note"] = backend.note();
      std::printf("%s\n", document_.dump(2).c_str());
    } else if (!backend.note().empty()) {
      std::printf("%s\n", backend.note().c_str());
    }
  }

 private:
  Report(double bandwidth, bool json) : bandwidth_(bandwidth), json_(json) {}

  double bandwidth_;
  bool json_;
  nlohmann::json document_;
};

int Largest(const std::vector<int>& values) {
  return values.empty() ? 0 : *std::max_element(values.begin(), values.end());
}

// What every step reads of the weights: all but the table of embeddings.
double WeightBytes(const LlamaModel& model) {
  double bytes = static_cast<double>(model.weights().output().bytes());
  for (const LlamaLayerWeights& layer : model.weights().layers) {
    for (const PackedLinear* linear :
         {layer.q_proj.get(), layer.k_proj.get(), layer.v_proj.get(),
          layer.o_proj.get(), layer.gate_proj.get(), layer.up_proj.get(),
          layer.down_proj.get()}) {
      bytes += static_cast<double>(linear->bytes());
    }
  }
  return bytes;
}

absl::StatusOr<Summary> MeasureSteps(SyntheticModel& synthetic,
                                     const Batch& batch, double seconds) {
  const BatchView view = batch.View();
  std::vector<int32_t> ids(view.num_logit_rows());
  Backend& backend = synthetic.backend();
  LlamaModel& model = synthetic.model();
  const auto samples = TakeSamplesFor(seconds, kMaxSamples, [&] {
    backend.BeginStep(view);
    model.Forward(view, synthetic.kv_cache().layers(), /*sum_gates=*/false,
                  nullptr);
    absl::Status status =
        backend.ArgMax(model.Logits(0, view.num_logit_rows()), std::span(ids));
    status.Update(backend.EndStep());
    return status;
  });
  if (!samples.ok()) return samples.status();
  if (std::count(ids.begin(), ids.end(), -1) > 0) {
    return absl::InternalError("logits are not finite");
  }
  return Summarize(*samples);
}

// KV heads, of one layer or all, of a batch of decoding sequences.
absl::Status MeasureAttention(SyntheticModel& synthetic, int sequences,
                              int context, int count, double seconds,
                              Report& report) {
  Backend& backend = synthetic.backend();
  const LlamaConfig& config = synthetic.model().config();
  const AttentionShape shape{config.num_heads, config.num_kv_heads,
                             config.head_dim};
  const Batch batch(sequences, context, count, config.vocab_size);
  const BatchView view = batch.View();
  const Shape rows{view.num_tokens(), config.q_size()};
  std::vector<float> host(rows.num_elements());
  for (size_t i = 0; i < host.size(); ++i) {
    host[i] = static_cast<float>(i * 7919 % 2000) / 1000 - 1;
  }
  auto q = backend.Upload({host.data(), DType::kF32, rows});
  if (!q.ok()) return q.status();
  auto out = backend.Allocate(DType::kF32, rows);
  if (!out.ok()) return out.status();
  const auto samples = TakeSamplesFor(seconds, kMaxSamples, [&] {
    backend.BeginStep(view);
    backend.Repeat({&batch}, [&] {
      for (const KvLayer& layer : synthetic.kv_cache().layers()) {
        backend.Attention(shape, q->view(), layer, out->view());
      }
    });
    return backend.EndStep();
  });
  if (!samples.ok()) return samples.status();
  // Of one layer; a prompt reads less than this, from the caches more often.
  const double bytes = 4.0 * sequences * context * config.kv_size();
  Summary one = Summarize(*samples);
  for (double* each : {&one.median, &one.p95, &one.least}) {
    *each /= config.num_layers;
  }
  report.Add({sequences, context, view.num_tokens(), bytes, one});
  return absl::OkStatus();
}

}  // namespace

absl::Status RunDecodeBench(const ModelBenchOptions& options) {
  const int batch = Largest(options.batches);
  const int context = Largest(options.contexts);
  auto synthetic =
      SyntheticModel::Create({.shape = options.shape,
                              .backend = options.backend,
                              .max_tokens = batch,
                              .max_logit_rows = batch,
                              .num_blocks = batch * BlocksFor(context)});
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
  const double weights = WeightBytes((*synthetic)->model());
  const auto kv =
      static_cast<double>((*synthetic)->kv_cache().shape().bytes_per_token());
  for (const int length : options.contexts) {
    for (const int count : options.batches) {
      if (count * BlocksFor(length) > (*synthetic)->kv_cache().num_blocks()) {
        report->LeaveOut(count, length);
        continue;
      }
      const auto seconds =
          MeasureSteps(**synthetic, Batch(count, length, 1, config.vocab_size),
                       options.seconds);
      if (!seconds.ok()) return seconds.status();
      report->Add(
          {count, length, count, weights + kv * count * length, *seconds});
    }
  }
  report->Finish((*synthetic)->backend());
  return absl::OkStatus();
}

absl::Status RunPrefillBench(const ModelBenchOptions& options) {
  const int longest = Largest(options.prompts);
  auto synthetic = SyntheticModel::Create({.shape = options.shape,
                                           .backend = options.backend,
                                           .max_tokens = longest,
                                           .max_logit_rows = 1,
                                           .num_blocks = BlocksFor(longest)});
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
    const auto seconds =
        MeasureSteps(**synthetic, Batch(1, length, length, config.vocab_size),
                     options.seconds);
    if (!seconds.ok()) return seconds.status();
    report->Add(
        {1, length, length, WeightBytes((*synthetic)->model()), *seconds});
  }
  report->Finish((*synthetic)->backend());
  return absl::OkStatus();
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
       .num_blocks = batch * BlocksFor(context)});
  if (!synthetic.ok()) return synthetic.status();
  absl::Status status = (*synthetic)->FillCache();
  if (!status.ok()) return status;
  auto report = Report::Create(options, "attention", (*synthetic)->backend());
  if (!report.ok()) return report.status();
  const auto measure = [&](int sequences, int length, int count) {
    if (sequences * BlocksFor(length) > (*synthetic)->kv_cache().num_blocks()) {
      report->LeaveOut(sequences, length);
      return absl::OkStatus();
    }
    return MeasureAttention(**synthetic, sequences, length, count,
                            options.seconds, *report);
  };
  for (const int length : options.contexts) {
    for (const int count : options.batches) {
      if (status = measure(count, length, 1); !status.ok()) return status;
    }
  }
  for (const int length : options.prompts) {
    if (status = measure(1, length, length); !status.ok()) return status;
  }
  report->Finish((*synthetic)->backend());
  return absl::OkStatus();
}

}  // namespace binarymos
