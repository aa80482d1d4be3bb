#include "cli/serve_options.h"

namespace binarymos {
namespace {

void AddModelOptions(EngineOptions& engine, std::string& served_model_name,
                     OptionTable& table) {
  const char* group = "Model";
  table.AddText({group, "model", "Model directory; required", true},
                &engine.model_dir);
  table.AddText({group, "served-model-name",
                 "Name that requests use; default: last part of the path"},
                &served_model_name);
  table.AddSwitch({group, "verify",
                   "Compare every file with the model's manifest.json first"},
                  &engine.verify);
  table.AddText({group, "device", "auto, cpu, cuda or cuda:<n>"},
                &engine.device);
  table.AddInt({group, "threads", "CPU threads; 0: all available"},
               &engine.num_threads);
  table.AddSwitch({group, "cpu-pin",
                   "Each CPU thread but the serving loop's keeps to one CPU"},
                  &engine.cpu_pin);
  table.AddText({group, "cpu-kernels",
                 "auto, amx, avx512, avx2, neon, portable or reference"},
                &engine.cpu_kernels);
  table.AddInt(
      {group, "activation-bits", "8, 12, 14 or 16; 0: 14 on CPU, 16 on CUDA"},
      &engine.activation_bits);
  table.AddText({group, "lm-head",
                 "f16; or int8: half of its bytes, not exact, not on CUDA"},
                &engine.lm_head);
  table.AddNumber({group, "gpu-memory-utilization",
                   "Part of a CUDA device's memory to fill"},
                  &engine.gpu_memory_utilization);
  table.AddSwitch({group, "cuda-graphs",
                   "On CUDA, record steps of one token per sequence and replay"
                   " them"},
                  &engine.cuda_graphs);
  table.AddSwitch({group, "cuda-clusters",
                   "On CUDA, a linear of one token in one launch, where the "
                   "device has clusters"},
                  &engine.cuda_clusters);
  table.AddSwitch({group, "cuda-overlap",
                   "On CUDA, kernels begin before the one ahead ends, where the"
                   " device can"},
                  &engine.cuda_overlap);
  table.AddSwitch({group, "cuda-wgmma",
                   "On CUDA, linears of several tokens by the instruction of a "
                   "warpgroup, where the device has it"},
                  &engine.cuda_wgmma);
  table.AddSwitch({group, "cuda-sampling",
                   "On CUDA, choose tokens on the device, which then has two "
                   "steps in flight; else on the host"},
                  &engine.cuda_sampling);
  table.AddSwitch({group, "fast-linear",
                   "On CUDA only: linears of more than 64 tokens in a step "
                   "faster and not exact"},
                  &engine.fast_linear);
  table.AddText({group, "overlap",
                 "Plan a step while the one before is computed: auto, on or "
                 "off; auto: on CUDA"},
                &engine.overlap);
  table.AddInt({group, "max-model-len",
                "Prompt and output of a request; 0: the model's"},
               &engine.max_model_len);
  table.AddBytes({group, "kv-cache-memory",
                  "0: on CPU the smaller of 4GiB and half of what is left, on "
                  "CUDA all that gpu-memory-utilization leaves"},
                 &engine.kv_cache_memory);
  table.AddText({group, "kv-cache-dtype",
                 "f16; fp8_e4m3: half of its memory, less precise; or f32: for "
                 "comparisons"},
                &engine.kv_cache_dtype);
  table.AddInt({group, "gate-sample-interval",
                "Steps between samples of the gates; 0: never"},
               &engine.gate_sample_interval);
}

void AddNetworkOptions(ServeOptions& options, OptionTable& table) {
  ServerConfig& config = options.config;
  const char* group = "Network";
  table.AddText({group, "host", "Address to bind"}, &config.host);
  table.AddInt({group, "grpc-port", "0: any free port"}, &config.grpc_port);
  table.AddInt(
      {group, "http-port", "Port of /metrics; 0: any free port; -1: none"},
      &config.http_port);
  table.AddText(
      {group, "port-file", "Where to write the ports once they serve"},
      &options.port_file);
  table.AddSwitch({group, "reflection", "Offer gRPC server reflection"},
                  &config.reflection);
  table.AddBytes({group, "max-message-size", "Largest request or answer"},
                 &config.max_message_bytes);
  table.AddInt({group, "max-concurrent-streams", "Per connection"},
               &config.max_concurrent_streams);
  table.AddDuration({group, "keepalive-time", "Idle time before a ping"},
                    &config.keepalive_time);
  table.AddDuration(
      {group, "keepalive-timeout", "Wait for a ping's answer before closing"},
      &config.keepalive_timeout);
  table.AddDuration({group, "min-ping-interval",
                     "Clients that ping more often are sent away"},
                    &config.min_ping_interval);
  table.AddDuration({group, "max-connection-age",
                     "Connections are renewed at this age; 0: never"},
                    &config.max_connection_age);
  table.AddDuration({group, "max-connection-age-grace",
                     "Time for the streams of an old one; 0: no limit"},
                    &config.max_connection_age_grace);
}

void AddSchedulingOptions(ServerConfig& config, OptionTable& table) {
  const char* group = "Scheduling";
  table.AddInt({group, "max-num-seqs", "Sequences that run at a time"},
               &config.engine.max_num_seqs);
  table.AddInt({group, "max-num-batched-tokens",
                "Token budget of a step; 0: chosen for the device"},
               &config.engine.max_num_batched_tokens);
  table.AddInt({group, "long-prefill-token-threshold",
                "Prompt tokens of one request in a step; 0: the budget"},
               &config.long_prefill_token_threshold);
  table.AddInt({group, "max-waiting-requests", "0: no limit"},
               &config.max_waiting_requests);
  table.AddInt64(
      {group, "max-waiting-tokens", "Prompt tokens that may wait; 0: no limit"},
      &config.max_waiting_tokens);
  table.AddInt({group, "max-waiting-requests-per-tenant", "0: no limit"},
               &config.max_waiting_requests_per_tenant);
  table.AddInt64({group, "max-waiting-tokens-per-tenant",
                  "Prompt tokens of one that may wait; 0: no limit"},
                 &config.max_waiting_tokens_per_tenant);
  table.AddDuration({group, "max-estimated-wait",
                     "Who would wait longer is refused at once; 0: no limit"},
                    &config.max_estimated_wait);
  table.AddSwitch(
      {group, "prefix-caching", "Reuse the KV blocks of common prefixes"},
      &config.prefix_caching);
}

void AddStreamOptions(ServerConfig& config, OptionTable& table) {
  const char* group = "Streams";
  table.AddInt(
      {group, "default-max-tokens", "max_tokens of requests that do not say"},
      &config.default_max_tokens);
  table.AddInt(
      {group, "text-threads", "Threads that tokenize, detokenize and write"},
      &config.text_threads);
  table.AddBytes(
      {group, "stream-buffer", "Unread output at which a stream is ended"},
      &config.stream_buffer_bytes);
  table.AddDuration(
      {group, "write-stall-timeout",
       "A stream that is not read for as long is ended; 0: never"},
      &config.write_stall_timeout);
}

void AddOperationOptions(ServerConfig& config, OptionTable& table) {
  table.AddDuration({"Shutdown", "drain-delay",
                     "Requests are still accepted so long after SIGTERM"},
                    &config.drain_delay);
  table.AddDuration(
      {"Shutdown", "drain-timeout", "Time for running streams to finish"},
      &config.drain_timeout);
  const char* group = "Logs and metrics";
  table.AddText({group, "log-level", "trace, debug, info, warn, error or off"},
                &config.log_level);
  table.AddText({group, "log-format",
                 "text, json, or auto: text on a terminal, else json"},
                &config.log_format);
  table.AddSwitch({group, "vllm-metric-names",
                   "Also export the five names that routers read"},
                  &config.vllm_metric_names);
}

}  // namespace

void AddServeOptions(ServeOptions& options, OptionTable& table) {
  AddModelOptions(options.config.engine, options.config.served_model_name,
                  table);
  AddNetworkOptions(options, table);
  AddSchedulingOptions(options.config, table);
  AddStreamOptions(options.config, table);
  AddOperationOptions(options.config, table);
}

}  // namespace binarymos
