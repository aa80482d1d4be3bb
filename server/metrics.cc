#include "server/metrics.h"

#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/metric_family.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <exception>
#include <limits>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace binarymos {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Buckets = prometheus::Histogram::BucketBoundaries;
using Labels = std::map<std::string, std::string>;

double Seconds(Duration duration) {
  return std::chrono::duration<double>(duration).count();
}

// vLLM's boundaries, which dashboards expect, continued downwards: with one-bit
// weights a token may take less than a millisecond.
const Buckets& FirstTokenBuckets() {
  static const auto& buckets = *new Buckets{
      .0005, .001, .002, .005, .01, .02, .04, .06, .08, .1,  .25, .5,
      .75,   1,    2.5,  5,    7.5, 10,  20,  40,  80,  160, 640, 2560};
  return buckets;
}

const Buckets& PerTokenBuckets() {
  static const auto& buckets =
      *new Buckets{.0001, .00025, .0005, .00075, .001, .0015, .0025, .005, .01,
                   .025,  .05,    .075,  .1,     .15,  .2,    .3,    .4,   .5,
                   .75,   1,      2.5,   5,      7.5,  10,    20,    40,   80};
  return buckets;
}

const Buckets& RequestTimeBuckets() {
  static const auto& buckets =
      *new Buckets{.0005, .001, .0025, .005, .01, .025, .05, .1,  .2,   .3,
                   .5,    .8,   1,     1.5,  2,   2.5,  5,   10,  15,   20,
                   30,    40,   50,    60,   120, 240,  480, 960, 1920, 7680};
  return buckets;
}

// 1, 2, 5, 10, 20, 50, ... up to the first that is not below `max`.
Buckets TokenCountBuckets(int max) {
  Buckets buckets;
  for (double decade = 1; buckets.empty() || buckets.back() < max;
       decade *= 10) {
    for (const double step : {1.0, 2.0, 5.0}) {
      buckets.push_back(step * decade);
      if (buckets.back() >= max) break;
    }
  }
  return buckets;
}

std::vector<ClientMetric::Label> ToClientLabels(const Labels& labels) {
  std::vector<ClientMetric::Label> result;
  for (const auto& [name, value] : labels) result.push_back({name, value});
  return result;
}

// Gauges and counters that are read from a LoopStatus at the moment of a
// scrape, so that nothing has to copy them in between.
class LoopCollector : public prometheus::Collectable {
 public:
  LoopCollector(const Metrics::Options& options, const ModelInfo& model,
                const CacheConfig& cache_config, const LoopStatus* status)
      : labels_{{"model_name", options.model_name}, {"engine", "0"}},
        vllm_names_(options.vllm_names),
        model_(model),
        cache_config_(cache_config),
        status_(status) {}

  std::vector<MetricFamily> Collect() const override {
    const SchedulerStats stats = status_->stats();
    std::vector<MetricFamily> families;
    AddLoad("binarymos_", stats, families);
    if (vllm_names_) {
      AddLoad("vllm:", stats, families);
      families.push_back(LoraInfo());
    }
    AddCounters(stats, families);
    families.push_back(StepTokens(stats.step_tokens));
    families.push_back(MeanGate(stats.mean_gate));
    AddHealth(stats, families);
    return families;
  }

 private:
  MetricFamily Gauge(std::string name, std::string help, double value) const {
    return Single(std::move(name), std::move(help), MetricType::Gauge, value);
  }

  MetricFamily Counter(std::string name, std::string help, double value) const {
    return Single(std::move(name), std::move(help), MetricType::Counter, value);
  }

  MetricFamily Single(std::string name, std::string help, MetricType type,
                      double value) const {
    MetricFamily family{std::move(name), std::move(help), type, {}};
    ClientMetric& metric = family.metric.emplace_back();
    metric.label = ToClientLabels(labels_);
    metric.gauge.value = value;
    metric.counter.value = value;
    return family;
  }

  // What routers read: four of the five names that exist with both prefixes.
  void AddLoad(const std::string& prefix, const SchedulerStats& stats,
               std::vector<MetricFamily>& families) const {
    families.push_back(Gauge(prefix + "num_requests_running",
                             "Sequences in the batch.", stats.num_running));
    families.push_back(Gauge(prefix + "num_requests_waiting",
                             "Sequences queued or preempted.",
                             stats.num_waiting));
    families.push_back(Gauge(prefix + "kv_cache_usage_perc",
                             "Share of KV cache blocks in use, 0 to 1.",
                             stats.kv_usage()));
    MetricFamily info = Gauge(prefix + "cache_config_info",
                              "Shape of the KV cache; always 1.", 1);
    // "gpu" is part of the name that routers look for, whatever the device.
    Labels labels = labels_;
    labels["cache_dtype"] = model_.kv_cache_dtype;
    labels["block_size"] = absl::StrCat(cache_config_.block_size);
    labels["num_gpu_blocks"] = absl::StrCat(cache_config_.num_blocks);
    labels["max_model_len"] = absl::StrCat(cache_config_.max_model_len);
    labels["max_num_seqs"] = absl::StrCat(cache_config_.max_num_seqs);
    labels["max_num_batched_tokens"] =
        absl::StrCat(cache_config_.max_num_batched_tokens);
    info.metric[0].label = ToClientLabels(labels);
    families.push_back(std::move(info));
  }

  // The fifth name that routers read by default; without it they report an
  // error at every scrape. There are no adapters here, so its lists are empty.
  MetricFamily LoraInfo() const {
    MetricFamily family =
        Gauge("vllm:lora_requests_info",
              "Running and waiting LoRA adapters (none); value is Unix time.",
              static_cast<double>(std::time(nullptr)));
    family.metric[0].label = ToClientLabels({{"max_lora", "0"},
                                             {"running_lora_adapters", ""},
                                             {"waiting_lora_adapters", ""}});
    return family;
  }

  void AddCounters(const SchedulerStats& stats,
                   std::vector<MetricFamily>& families) const {
    const auto add = [&](const char* suffix, const char* help, double value) {
      families.push_back(
          Counter(absl::StrCat("binarymos_", suffix), help, value));
    };
    add("prefix_cache_queries_total",
        "Prompt tokens looked up in the prefix cache.",
        stats.num_cache_query_tokens);
    add("prefix_cache_hits_total", "Prompt tokens found in the prefix cache.",
        stats.num_cache_hit_tokens);
    add("num_preemptions_total",
        "Sequences that lost their KV blocks and were recomputed.",
        stats.num_preemptions);
    add("prompt_tokens_total",
        "Prompt tokens computed, recomputed ones included.",
        stats.num_prompt_tokens);
    add("generation_tokens_total", "Tokens generated.",
        stats.num_generated_tokens);
    add("corrupted_requests_total",
        "Samples ended because their logits held NaN or Inf.",
        stats.num_not_finite);
    add("steps_total", "Steps computed.", stats.num_steps);
    add("schedule_seconds_total", "Time the loop spent scheduling.",
        Seconds(stats.schedule_time));
    add("compute_seconds_total", "Time the loop spent computing steps.",
        Seconds(stats.compute_time));
  }

  MetricFamily StepTokens(const StepTokensHistogram& steps) const {
    // vLLM's name; a histogram in spite of its ending.
    MetricFamily family{"binarymos_iteration_tokens_total",
                        "Tokens computed per step.",
                        MetricType::Histogram,
                        {}};
    ClientMetric& metric = family.metric.emplace_back();
    metric.label = ToClientLabels(labels_);
    uint64_t cumulative = 0;
    for (size_t i = 0; i < steps.counts.size(); ++i) {
      cumulative += steps.counts[i];
      const double bound = i < StepTokensHistogram::kBounds.size()
                               ? StepTokensHistogram::kBounds[i]
                               : std::numeric_limits<double>::infinity();
      metric.histogram.bucket.push_back({cumulative, bound});
    }
    metric.histogram.sample_count = cumulative;
    metric.histogram.sample_sum = static_cast<double>(steps.sum);
    return family;
  }

  MetricFamily MeanGate(const std::vector<float>& mean_gate) const {
    MetricFamily family{"binarymos_mean_gate",
                        "Mean router weight of an expert over the tokens and "
                        "linear layers of a block, newest sampled step.",
                        MetricType::Gauge,
                        {}};
    if (model_.num_experts == 0) return family;
    for (size_t i = 0; i < mean_gate.size(); ++i) {
      Labels labels = labels_;
      labels["layer"] = absl::StrCat(i / model_.num_experts);
      labels["expert"] = absl::StrCat(i % model_.num_experts);
      ClientMetric& metric = family.metric.emplace_back();
      metric.label = ToClientLabels(labels);
      metric.gauge.value = mean_gate[i];
    }
    return family;
  }

  void AddHealth(const SchedulerStats& stats,
                 std::vector<MetricFamily>& families) const {
    const MonotonicTime now = std::chrono::steady_clock::now();
    families.push_back(Gauge("binarymos_engine_alive",
                             "1 while the serving loop makes progress.",
                             status_->IsAlive(now) ? 1 : 0));
    families.push_back(Gauge("binarymos_longest_step_seconds",
                             "Longest step since the start.",
                             Seconds(stats.longest_step)));
  }

  const Labels labels_;
  const bool vllm_names_;
  const ModelInfo model_;
  const CacheConfig cache_config_;
  const LoopStatus* const status_;
};

// Families of one registry with the labels that every metric carries.
class FamilyFactory {
 public:
  FamilyFactory(prometheus::Registry& registry, Labels labels)
      : registry_(registry), labels_(std::move(labels)) {}

  prometheus::Family<prometheus::Counter>& CounterFamily(const char* suffix,
                                                         const char* help) {
    return prometheus::BuildCounter()
        .Name(absl::StrCat("binarymos_", suffix))
        .Help(help)
        .Labels(labels_)
        .Register(registry_);
  }

  prometheus::Gauge& Gauge(const char* suffix, const char* help,
                           const Labels& labels = {}) {
    return prometheus::BuildGauge()
        .Name(absl::StrCat("binarymos_", suffix))
        .Help(help)
        .Labels(labels_)
        .Register(registry_)
        .Add(labels);
  }

  prometheus::Histogram& Histogram(const char* suffix, const char* help,
                                   const Buckets& buckets) {
    return prometheus::BuildHistogram()
        .Name(absl::StrCat("binarymos_", suffix))
        .Help(help)
        .Labels(labels_)
        .Register(registry_)
        .Add({}, buckets);
  }

 private:
  prometheus::Registry& registry_;
  const Labels labels_;
};

// One observation per request that was admitted, when it ends.
class RequestMetrics {
 public:
  RequestMetrics(FamilyFactory& factory, int max_model_len)
      : first_token_(factory.Histogram("time_to_first_token_seconds",
                                       "Arrival to first token.",
                                       FirstTokenBuckets())),
        per_output_token_(factory.Histogram(
            "request_time_per_output_token_seconds",
            "Mean time per token of a request after its first.",
            PerTokenBuckets())),
        e2e_(factory.Histogram("e2e_request_latency_seconds", "Arrival to end.",
                               RequestTimeBuckets())),
        queue_(factory.Histogram("request_queue_time_seconds",
                                 "Arrival to first scheduled.",
                                 RequestTimeBuckets())),
        prefill_(factory.Histogram("request_prefill_time_seconds",
                                   "First scheduled to first token.",
                                   RequestTimeBuckets())),
        decode_(factory.Histogram("request_decode_time_seconds",
                                  "First token to last token.",
                                  RequestTimeBuckets())),
        inference_(factory.Histogram("request_inference_time_seconds",
                                     "First scheduled to last token.",
                                     RequestTimeBuckets())),
        prompt_tokens_(factory.Histogram("request_prompt_tokens",
                                         "Prompt tokens of a request.",
                                         TokenCountBuckets(max_model_len))),
        generation_tokens_(
            factory.Histogram("request_generation_tokens",
                              "Tokens generated for a request, all samples.",
                              TokenCountBuckets(max_model_len))),
        max_tokens_(factory.Histogram("request_params_max_tokens",
                                      "max_tokens of a request.",
                                      TokenCountBuckets(max_model_len))),
        n_(factory.Histogram("request_params_n", "Samples of a request.",
                             Buckets{1, 2, 5, 10, 20})),
        finished_(factory.CounterFamily("request_success_total",
                                        "Requests ended, by reason.")) {
    for (const char* reason : {"stop", "length", "abort", "error"}) {
      finished_.Add({{"finished_reason", reason}});
    }
  }

  void Record(const RequestRecord& record) {
    finished_.Add({{"finished_reason", record.finished_reason}}).Increment();
    prompt_tokens_.Observe(record.num_prompt_tokens);
    generation_tokens_.Observe(record.num_generated_tokens);
    max_tokens_.Observe(record.max_tokens);
    n_.Observe(record.num_samples);
    RecordTimes(record);
  }

 private:
  void RecordTimes(const RequestRecord& record) {
    const RequestTimes& times = record.times;
    e2e_.Observe(Seconds(times.finished - times.arrival));
    if (!times.first_scheduled.has_value()) return;
    queue_.Observe(Seconds(*times.first_scheduled - times.arrival));
    if (!times.first_token.has_value()) return;
    first_token_.Observe(Seconds(*times.first_token - times.arrival));
    prefill_.Observe(Seconds(*times.first_token - *times.first_scheduled));
    if (!times.last_token.has_value()) return;
    const double decode = Seconds(*times.last_token - *times.first_token);
    decode_.Observe(decode);
    inference_.Observe(Seconds(*times.last_token - *times.first_scheduled));
    // The times are sample 0's; samples share its length only on average.
    const double tokens = static_cast<double>(record.num_generated_tokens) /
                          std::max(record.num_samples, 1);
    if (tokens > 1) per_output_token_.Observe(decode / (tokens - 1));
  }

  prometheus::Histogram& first_token_;
  prometheus::Histogram& per_output_token_;
  prometheus::Histogram& e2e_;
  prometheus::Histogram& queue_;
  prometheus::Histogram& prefill_;
  prometheus::Histogram& decode_;
  prometheus::Histogram& inference_;
  prometheus::Histogram& prompt_tokens_;
  prometheus::Histogram& generation_tokens_;
  prometheus::Histogram& max_tokens_;
  prometheus::Histogram& n_;
  prometheus::Family<prometheus::Counter>& finished_;
};

// Facts that do not change after loading.
void AddConstants(FamilyFactory& factory, const Metrics::Options& options,
                  const ModelInfo& model, const CacheConfig& cache_config) {
  factory
      .Gauge("build_info", "The running program; always 1.",
             {{"version", options.version}})
      .Set(1);
  factory
      .Gauge(
          "model_info", "The loaded model; always 1.",
          {{"architecture", model.architecture},
           {"quant_method", model.quant_method},
           {"device", model.device},
           {"num_experts", absl::StrCat(model.num_experts)},
           {"num_layers", absl::StrCat(model.num_layers)},
           {"hidden_size", absl::StrCat(model.hidden_size)},
           {"bits_per_weight", absl::StrFormat("%.4g", model.bits_per_weight)}})
      .Set(1);
  factory.Gauge("model_parameters", "Parameters of the model.")
      .Set(static_cast<double>(model.num_parameters));
  factory
      .Gauge("model_bits_per_weight",
             "Bits per weight of the linear layers in the blocks.")
      .Set(model.bits_per_weight);
  factory.Gauge("model_weight_bytes", "Memory that the weights take.")
      .Set(static_cast<double>(model.weight_bytes));
  factory.Gauge("kv_cache_bytes", "Memory that the KV cache takes.")
      .Set(static_cast<double>(cache_config.bytes));
  factory.Gauge("kv_cache_capacity_tokens", "Tokens that the KV cache holds.")
      .Set(static_cast<double>(cache_config.num_blocks) *
           cache_config.block_size);
}

class PrometheusMetrics : public Metrics {
 public:
  PrometheusMetrics(const Options& options, const ModelInfo& model,
                    const CacheConfig& cache_config, const LoopStatus* status)
      : registry_(std::make_shared<prometheus::Registry>()),
        loop_(std::make_shared<LoopCollector>(options, model, cache_config,
                                              status)),
        factory_(*registry_,
                 {{"model_name", options.model_name}, {"engine", "0"}}),
        requests_(factory_, cache_config.max_model_len),
        inter_token_(factory_.Histogram("inter_token_latency_seconds",
                                        "Time between two tokens of a stream.",
                                        PerTokenBuckets())),
        statuses_(factory_.CounterFamily(
            "request_status_total",
            "Requests answered, refused ones included, by gRPC status.")),
        rejections_(factory_.CounterFamily("admission_rejections_total",
                                           "Requests refused, by reason.")),
        streams_open_(factory_.Gauge("streams_open", "Streams open now.")) {
    AddConstants(factory_, options, model, cache_config);
    for (const absl::StatusCode code :
         {absl::StatusCode::kOk, absl::StatusCode::kCancelled,
          absl::StatusCode::kInvalidArgument,
          absl::StatusCode::kDeadlineExceeded, absl::StatusCode::kNotFound,
          absl::StatusCode::kResourceExhausted, absl::StatusCode::kOutOfRange,
          absl::StatusCode::kInternal, absl::StatusCode::kUnavailable}) {
      StatusCounter(code);
    }
    for (const char* reason :
         {"queue_full", "queue_tokens", "tenant_full", "tenant_tokens",
          "estimated_wait", "deadline", "draining", "abort", "invalid"}) {
      rejections_.Add({{"reason", reason}});
    }
  }

  // Serves /metrics at `address`. UNAVAILABLE if it cannot be bound.
  absl::Status Expose(const std::string& address) {
    try {
      // A reader that stalls must not hold a thread for long.
      exposer_ = std::make_unique<prometheus::Exposer>(
          std::vector<std::string>{"listening_ports", address, "num_threads",
                                   "4", "request_timeout_ms", "10000"});
      exposer_->RegisterCollectable(registry_);
      exposer_->RegisterCollectable(loop_);
      const std::vector<int> ports = exposer_->GetListeningPorts();
      if (!ports.empty()) http_port_ = ports.front();
    } catch (const std::exception& error) {
      exposer_.reset();
      return absl::UnavailableError(
          absl::StrCat("cannot serve HTTP on ", address,
                       " (is the port in use? --http-port chooses another): ",
                       error.what()));
    }
    return absl::OkStatus();
  }

  int http_port() const override { return http_port_; }

  void RecordRequest(const RequestRecord& record) override {
    StatusCounter(record.status.code()).Increment();
    requests_.Record(record);
  }

  void RecordRejection(const absl::Status& status,
                       const std::string& reason) override {
    StatusCounter(status.code()).Increment();
    rejections_.Add({{"reason", reason}}).Increment();
  }

  void RecordInterTokenLatency(Duration latency) override {
    inter_token_.Observe(Seconds(latency));
  }

  void AddOpenStreams(int delta) override { streams_open_.Increment(delta); }

  std::string Render() const override {
    std::vector<MetricFamily> families = registry_->Collect();
    for (MetricFamily& family : loop_->Collect()) {
      families.push_back(std::move(family));
    }
    return prometheus::TextSerializer().Serialize(families);
  }

 private:
  prometheus::Counter& StatusCounter(absl::StatusCode code) {
    return statuses_.Add({{"code", absl::StatusCodeToString(code)}});
  }

  // Families belong to the registry and are thread-safe.
  const std::shared_ptr<prometheus::Registry> registry_;
  const std::shared_ptr<LoopCollector> loop_;
  FamilyFactory factory_;
  RequestMetrics requests_;
  prometheus::Histogram& inter_token_;
  prometheus::Family<prometheus::Counter>& statuses_;
  prometheus::Family<prometheus::Counter>& rejections_;
  prometheus::Gauge& streams_open_;

  int http_port_ = -1;
  // Last, so that its threads end before what they read.
  std::unique_ptr<prometheus::Exposer> exposer_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Metrics>> Metrics::Create(
    const Options& options, const ModelInfo& model,
    const CacheConfig& cache_config, const LoopStatus* status) {
  auto metrics =
      std::make_unique<PrometheusMetrics>(options, model, cache_config, status);
  if (!options.http_address.empty()) {
    const absl::Status exposed = metrics->Expose(options.http_address);
    if (!exposed.ok()) return exposed;
  }
  return metrics;
}

}  // namespace binarymos
