#include "server/config.h"

#include <functional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace binarymos {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

ServerConfig ValidConfig() {
  ServerConfig config;
  config.engine.model_dir = "models/tales";
  return config;
}

TEST(ServerConfigTest, DefaultsNeedNothingButAModel) {
  EXPECT_TRUE(Validate(ValidConfig()).ok()) << Validate(ValidConfig());
  EXPECT_EQ(Validate(ServerConfig()).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(ServerConfigTest, BindsLoopbackUnlessToldOtherwise) {
  EXPECT_EQ(ServerConfig().host, "127.0.0.1");
}

TEST(ServerConfigTest, AnyFreePortMayBeAskedForTwice) {
  ServerConfig config = ValidConfig();
  config.grpc_port = 0;
  config.http_port = 0;
  EXPECT_TRUE(Validate(config).ok()) << Validate(config);
}

TEST(ServerConfigTest, DevicesMayNameACudaDevice) {
  for (const char* device : {"auto", "cpu", "cuda", "cuda:0", "cuda:11"}) {
    ServerConfig config = ValidConfig();
    config.engine.device = device;
    EXPECT_TRUE(Validate(config).ok()) << device;
  }
}

struct BadConfig {
  std::string option;
  std::function<void(ServerConfig&)> spoil;
};

TEST(ServerConfigTest, EveryBadValueIsRefusedByTheNameOfItsOption) {
  const std::vector<BadConfig> cases = {
      {"model", [](ServerConfig& c) { c.engine.model_dir = ""; }},
      {"device", [](ServerConfig& c) { c.engine.device = "tpu"; }},
      {"device", [](ServerConfig& c) { c.engine.device = "cuda:"; }},
      {"device", [](ServerConfig& c) { c.engine.device = "cuda:x"; }},
      {"threads", [](ServerConfig& c) { c.engine.num_threads = -1; }},
      {"cpu-kernels", [](ServerConfig& c) { c.engine.cpu_kernels = "sse"; }},
      {"lm-head", [](ServerConfig& c) { c.engine.lm_head = "int4"; }},
      {"kv-cache-dtype",
       [](ServerConfig& c) { c.engine.kv_cache_dtype = "fp8"; }},
      {"activation-bits",
       [](ServerConfig& c) { c.engine.activation_bits = 9; }},
      {"max-num-seqs", [](ServerConfig& c) { c.engine.max_num_seqs = 0; }},
      {"max-num-seqs", [](ServerConfig& c) { c.engine.max_num_seqs = 1025; }},
      {"max-model-len", [](ServerConfig& c) { c.engine.max_model_len = -1; }},
      {"max-num-batched-tokens",
       [](ServerConfig& c) { c.engine.max_num_batched_tokens = -1; }},
      {"kv-cache-memory",
       [](ServerConfig& c) { c.engine.kv_cache_memory = -1; }},
      {"gate-sample-interval",
       [](ServerConfig& c) { c.engine.gate_sample_interval = -1; }},
      {"host", [](ServerConfig& c) { c.host = ""; }},
      {"host", [](ServerConfig& c) { c.host = "a, b"; }},
      {"grpc-port", [](ServerConfig& c) { c.grpc_port = -1; }},
      {"grpc-port", [](ServerConfig& c) { c.grpc_port = 65536; }},
      {"http-port", [](ServerConfig& c) { c.http_port = -2; }},
      {"http-port", [](ServerConfig& c) { c.http_port = c.grpc_port; }},
      {"max-message-size", [](ServerConfig& c) { c.max_message_bytes = 1; }},
      {"keepalive-time",
       [](ServerConfig& c) { c.keepalive_time = milliseconds(0); }},
      {"keepalive-timeout",
       [](ServerConfig& c) { c.keepalive_timeout = milliseconds(0); }},
      {"min-ping-interval",
       [](ServerConfig& c) { c.min_ping_interval = milliseconds(-1); }},
      {"max-connection-age",
       [](ServerConfig& c) { c.max_connection_age = milliseconds(-1); }},
      {"max-connection-age-grace",
       [](ServerConfig& c) { c.max_connection_age_grace = milliseconds(-1); }},
      {"max-concurrent-streams",
       [](ServerConfig& c) { c.max_concurrent_streams = 0; }},
      {"max-waiting-requests",
       [](ServerConfig& c) { c.max_waiting_requests = -1; }},
      {"max-waiting-tokens",
       [](ServerConfig& c) { c.max_waiting_tokens = -1; }},
      {"max-waiting-requests-per-tenant",
       [](ServerConfig& c) { c.max_waiting_requests_per_tenant = -1; }},
      {"max-waiting-tokens-per-tenant",
       [](ServerConfig& c) { c.max_waiting_tokens_per_tenant = -1; }},
      {"max-estimated-wait",
       [](ServerConfig& c) { c.max_estimated_wait = milliseconds(-1); }},
      {"write-stall-timeout",
       [](ServerConfig& c) { c.write_stall_timeout = milliseconds(-1); }},
      {"long-prefill-token-threshold",
       [](ServerConfig& c) { c.long_prefill_token_threshold = -1; }},
      {"text-threads", [](ServerConfig& c) { c.text_threads = 0; }},
      {"stream-buffer", [](ServerConfig& c) { c.stream_buffer_bytes = 1; }},
      {"default-max-tokens", [](ServerConfig& c) { c.default_max_tokens = 0; }},
      {"drain-delay",
       [](ServerConfig& c) { c.drain_delay = milliseconds(-1); }},
      {"drain-timeout",
       [](ServerConfig& c) { c.drain_timeout = milliseconds(-1); }},
      {"log-level", [](ServerConfig& c) { c.log_level = "loud"; }},
      {"log-format", [](ServerConfig& c) { c.log_format = "xml"; }},
  };
  for (const BadConfig& bad : cases) {
    ServerConfig config = ValidConfig();
    bad.spoil(config);
    const absl::Status status = Validate(config);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad.option;
    EXPECT_THAT(std::string(status.message()), HasSubstr(bad.option + ":"));
    EXPECT_THAT(std::string(status.message()), HasSubstr("use "));
  }
}

}  // namespace
}  // namespace binarymos
