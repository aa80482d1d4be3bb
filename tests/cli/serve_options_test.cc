#include "cli/serve_options.h"

#include <chrono>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace binarymos {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

absl::Status Load(ServeOptions& options,
                  const std::vector<std::string>& variables) {
  OptionTable table;
  AddServeOptions(options, table);
  std::vector<const char*> environment;
  for (const std::string& variable : variables) {
    environment.push_back(variable.c_str());
  }
  environment.push_back(nullptr);
  return table.Load(environment.data());
}

TEST(ServeOptionsTest, EveryOptionReachesItsField) {
  ServeOptions o;
  const absl::Status status =
      Load(o, {"BINARYMOS_MODEL=dir",
               "BINARYMOS_SERVED_MODEL_NAME=name",
               "BINARYMOS_DEVICE=cpu",
               "BINARYMOS_THREADS=3",
               "BINARYMOS_CPU_KERNELS=portable",
               "BINARYMOS_ACTIVATION_BITS=12",
               "BINARYMOS_GPU_MEMORY_UTILIZATION=0.75",
               "BINARYMOS_CUDA_WGMMA=true",
               "BINARYMOS_CUDA_SAMPLING=false",
               "BINARYMOS_FAST_LINEAR=true",
               "BINARYMOS_MAX_MODEL_LEN=101",
               "BINARYMOS_KV_CACHE_MEMORY=1MiB",
               "BINARYMOS_KV_CACHE_DTYPE=fp8_e4m3",
               "BINARYMOS_GATE_SAMPLE_INTERVAL=102",
               "BINARYMOS_HOST=::1",
               "BINARYMOS_GRPC_PORT=103",
               "BINARYMOS_HTTP_PORT=104",
               "BINARYMOS_PORT_FILE=ports",
               "BINARYMOS_REFLECTION=false",
               "BINARYMOS_MAX_MESSAGE_SIZE=2MiB",
               "BINARYMOS_MAX_CONCURRENT_STREAMS=105",
               "BINARYMOS_KEEPALIVE_TIME=11s",
               "BINARYMOS_KEEPALIVE_TIMEOUT=12s",
               "BINARYMOS_MIN_PING_INTERVAL=13s",
               "BINARYMOS_MAX_CONNECTION_AGE=14s",
               "BINARYMOS_MAX_CONNECTION_AGE_GRACE=15s",
               "BINARYMOS_MAX_NUM_SEQS=106",
               "BINARYMOS_MAX_NUM_BATCHED_TOKENS=107",
               "BINARYMOS_LONG_PREFILL_TOKEN_THRESHOLD=108",
               "BINARYMOS_MAX_WAITING_REQUESTS=109",
               "BINARYMOS_MAX_WAITING_TOKENS=110",
               "BINARYMOS_MAX_WAITING_REQUESTS_PER_TENANT=112",
               "BINARYMOS_MAX_WAITING_TOKENS_PER_TENANT=113",
               "BINARYMOS_MAX_ESTIMATED_WAIT=18s",
               "BINARYMOS_PREFIX_CACHING=false",
               "BINARYMOS_DEFAULT_MAX_TOKENS=111",
               "BINARYMOS_TEXT_THREADS=4",
               "BINARYMOS_STREAM_BUFFER=8KiB",
               "BINARYMOS_WRITE_STALL_TIMEOUT=19s",
               "BINARYMOS_DRAIN_DELAY=16s",
               "BINARYMOS_DRAIN_TIMEOUT=17s",
               "BINARYMOS_LOG_LEVEL=debug",
               "BINARYMOS_LOG_FORMAT=json",
               "BINARYMOS_VLLM_METRIC_NAMES=false"});
  ASSERT_TRUE(status.ok()) << status;
  const ServerConfig& c = o.config;
  EXPECT_EQ(c.engine.model_dir, "dir");
  EXPECT_EQ(c.served_model_name, "name");
  EXPECT_EQ(c.engine.device, "cpu");
  EXPECT_EQ(c.engine.num_threads, 3);
  EXPECT_EQ(c.engine.cpu_kernels, "portable");
  EXPECT_EQ(c.engine.activation_bits, 12);
  EXPECT_EQ(c.engine.gpu_memory_utilization, 0.75);
  EXPECT_TRUE(c.engine.cuda_wgmma);
  EXPECT_FALSE(c.engine.cuda_sampling);
  EXPECT_TRUE(c.engine.fast_linear);
  EXPECT_EQ(c.engine.max_model_len, 101);
  EXPECT_EQ(c.engine.kv_cache_memory, 1 << 20);
  EXPECT_EQ(c.engine.kv_cache_dtype, "fp8_e4m3");
  EXPECT_EQ(c.engine.gate_sample_interval, 102);
  EXPECT_EQ(c.host, "::1");
  EXPECT_EQ(c.grpc_port, 103);
  EXPECT_EQ(c.http_port, 104);
  EXPECT_EQ(o.port_file, "ports");
  EXPECT_FALSE(c.reflection);
  EXPECT_EQ(c.max_message_bytes, 2 << 20);
  EXPECT_EQ(c.max_concurrent_streams, 105);
  EXPECT_EQ(c.keepalive_time, milliseconds(11'000));
  EXPECT_EQ(c.keepalive_timeout, milliseconds(12'000));
  EXPECT_EQ(c.min_ping_interval, milliseconds(13'000));
  EXPECT_EQ(c.max_connection_age, milliseconds(14'000));
  EXPECT_EQ(c.max_connection_age_grace, milliseconds(15'000));
  EXPECT_EQ(c.engine.max_num_seqs, 106);
  EXPECT_EQ(c.engine.max_num_batched_tokens, 107);
  EXPECT_EQ(c.long_prefill_token_threshold, 108);
  EXPECT_EQ(c.max_waiting_requests, 109);
  EXPECT_EQ(c.max_waiting_tokens, 110);
  EXPECT_EQ(c.max_waiting_requests_per_tenant, 112);
  EXPECT_EQ(c.max_waiting_tokens_per_tenant, 113);
  EXPECT_EQ(c.max_estimated_wait, milliseconds(18'000));
  EXPECT_FALSE(c.prefix_caching);
  EXPECT_EQ(c.default_max_tokens, 111);
  EXPECT_EQ(c.text_threads, 4);
  EXPECT_EQ(c.stream_buffer_bytes, 8192);
  EXPECT_EQ(c.write_stall_timeout, milliseconds(19'000));
  EXPECT_EQ(c.drain_delay, milliseconds(16'000));
  EXPECT_EQ(c.drain_timeout, milliseconds(17'000));
  EXPECT_EQ(c.log_level, "debug");
  EXPECT_EQ(c.log_format, "json");
  EXPECT_FALSE(c.vllm_metric_names);
  EXPECT_TRUE(Validate(c).ok()) << Validate(c);
}

TEST(ServeOptionsTest, DefaultsAreThoseOfTheConfiguration) {
  ServeOptions options;
  ASSERT_TRUE(Load(options, {}).ok());
  EXPECT_EQ(options.config.host, ServerConfig().host);
  EXPECT_EQ(options.config.drain_timeout, ServerConfig().drain_timeout);
}

TEST(ServeOptionsTest, AMisspeltVariableNamesTheNearest) {
  ServeOptions options;
  const absl::Status status = Load(options, {"BINARYMOS_MODLE=dir"});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("'BINARYMOS_MODEL'"));
}

}  // namespace
}  // namespace binarymos
