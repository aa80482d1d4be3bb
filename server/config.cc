#include "server/config.h"

#include <initializer_list>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"

namespace binarymos {
namespace {

using std::chrono::milliseconds;

// The first violated rule; every Check after it does nothing.
class Checker {
 public:
  void Require(bool condition, absl::string_view option, const auto& value,
               absl::string_view allowed) {
    if (condition || !status_.ok()) return;
    status_ = absl::InvalidArgumentError(
        absl::StrCat(option, ": ", value, " is not allowed; use ", allowed));
  }

  void Range(absl::string_view option, int64_t value, int64_t low,
             int64_t high) {
    Require(value >= low && value <= high, option, value,
            absl::StrCat(low, " to ", high));
  }

  void AtLeast(absl::string_view option, int64_t value, int64_t low) {
    Require(value >= low, option, value, absl::StrCat("at least ", low));
  }

  void Period(absl::string_view option, milliseconds value, milliseconds low) {
    // gRPC takes milliseconds as an int.
    constexpr milliseconds kHigh(std::numeric_limits<int>::max());
    Require(value >= low && value <= kHigh, option,
            absl::StrCat(value.count(), "ms"),
            absl::StrCat(low.count(), "ms to ", kHigh.count(), "ms"));
  }

  void OneOf(absl::string_view option, absl::string_view value,
             std::initializer_list<absl::string_view> allowed) {
    bool found = false;
    for (const absl::string_view candidate : allowed) {
      found |= candidate == value;
    }
    Require(found, option, absl::StrCat("'", value, "'"),
            absl::StrCat("one of ", absl::StrJoin(allowed, ", ")));
  }

  absl::Status status() const { return status_; }

 private:
  absl::Status status_;
};

bool IsDevice(absl::string_view device) {
  if (device == "auto" || device == "cpu" || device == "cuda") return true;
  constexpr absl::string_view kPrefix = "cuda:";
  if (device.substr(0, kPrefix.size()) != kPrefix) return false;
  const absl::string_view index = device.substr(kPrefix.size());
  return !index.empty() && index.size() <= 3 &&
         index.find_first_not_of("0123456789") == absl::string_view::npos;
}

void CheckEngine(const EngineOptions& engine, Checker& check) {
  check.Require(!engine.model_dir.empty(), "model", "''",
                "the path of a model directory");
  check.Require(IsDevice(engine.device), "device",
                absl::StrCat("'", engine.device, "'"),
                "one of auto, cpu, cuda, cuda:<n>");
  check.Range("threads", engine.num_threads, 0, 1024);
  check.OneOf(
      "cpu-kernels", engine.cpu_kernels,
      {"auto", "amx", "avx512", "avx2", "neon", "portable", "reference"});
  check.Require(
      engine.gpu_memory_utilization > 0 && engine.gpu_memory_utilization <= 1,
      "gpu-memory-utilization", engine.gpu_memory_utilization,
      "more than 0 and at most 1");
  const int bits = engine.activation_bits;
  check.Require(
      bits == 0 || bits == 8 || bits == 12 || bits == 14 || bits == 16,
      "activation-bits", bits, "one of 0, 8, 12, 14, 16");
  check.OneOf("lm-head", engine.lm_head, {"f16", "int8"});
  check.OneOf("kv-cache-dtype", engine.kv_cache_dtype,
              {"f16", "fp8_e4m3", "f32"});
  check.Range("max-num-seqs", engine.max_num_seqs, 1, 1024);
  check.AtLeast("max-model-len", engine.max_model_len, 0);
  check.AtLeast("max-num-batched-tokens", engine.max_num_batched_tokens, 0);
  check.AtLeast("kv-cache-memory", engine.kv_cache_memory, 0);
  check.AtLeast("gate-sample-interval", engine.gate_sample_interval, 0);
}

void CheckNetwork(const ServerConfig& config, Checker& check) {
  check.Require(!config.host.empty() &&
                    config.host.find_first_of(" ,/") == std::string::npos,
                "host", absl::StrCat("'", config.host, "'"),
                "one address or host name");
  check.Range("grpc-port", config.grpc_port, 0, 65535);
  check.Range("http-port", config.http_port, -1, 65535);
  check.Require(config.grpc_port <= 0 || config.grpc_port != config.http_port,
                "http-port", config.http_port, "another port than grpc-port");
  check.Range("max-message-size", config.max_message_bytes, 4096,
              std::numeric_limits<int>::max());
  check.Period("keepalive-time", config.keepalive_time, milliseconds(1000));
  check.Period("keepalive-timeout", config.keepalive_timeout,
               milliseconds(1000));
  check.Period("min-ping-interval", config.min_ping_interval, milliseconds(0));
  check.Period("max-connection-age", config.max_connection_age,
               milliseconds(0));
  check.Period("max-connection-age-grace", config.max_connection_age_grace,
               milliseconds(0));
  check.Range("max-concurrent-streams", config.max_concurrent_streams, 1,
              1 << 20);
}

}  // namespace

absl::Status Validate(const ServerConfig& config) {
  Checker check;
  CheckEngine(config.engine, check);
  CheckNetwork(config, check);

  check.AtLeast("max-waiting-requests", config.max_waiting_requests, 0);
  check.AtLeast("max-waiting-tokens", config.max_waiting_tokens, 0);
  check.AtLeast("max-waiting-requests-per-tenant",
                config.max_waiting_requests_per_tenant, 0);
  check.AtLeast("max-waiting-tokens-per-tenant",
                config.max_waiting_tokens_per_tenant, 0);
  check.Period("max-estimated-wait", config.max_estimated_wait,
               milliseconds(0));
  check.AtLeast("long-prefill-token-threshold",
                config.long_prefill_token_threshold, 0);

  check.Range("text-threads", config.text_threads, 1, 256);
  check.Range("stream-buffer", config.stream_buffer_bytes, 4096,
              int64_t{1} << 30);
  check.Period("write-stall-timeout", config.write_stall_timeout,
               milliseconds(0));
  check.AtLeast("default-max-tokens", config.default_max_tokens, 1);

  check.Period("drain-delay", config.drain_delay, milliseconds(0));
  check.Period("drain-timeout", config.drain_timeout, milliseconds(0));

  check.OneOf("log-level", config.log_level,
              {"trace", "debug", "info", "warn", "error", "off"});
  check.OneOf("log-format", config.log_format, {"auto", "text", "json"});
  return check.status();
}

}  // namespace binarymos
