#include "server/metrics.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <regex>
#include <set>
#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace binarymos {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;
using ::testing::Not;

// "GET /metrics" of a server on loopback; empty if it cannot be reached.
std::string HttpGet(int port, const std::string& path) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer;
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) ==
      0) {
    const std::string request =
        "GET " + path +
        " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    if (send(fd, request.data(), request.size(), 0) ==
        static_cast<ssize_t>(request.size())) {
      char buffer[4096];
      for (ssize_t n; (n = recv(fd, buffer, sizeof(buffer), 0)) > 0;) {
        answer.append(buffer, static_cast<size_t>(n));
      }
    }
  }
  close(fd);
  return answer;
}

class MetricsTest : public ::testing::Test {
 protected:
  MetricsTest() {
    options_.model_name = "tiny";
    options_.version = "1.2.3";
    model_.architecture = "llama";
    model_.quant_method = "binarymos";
    model_.num_experts = 2;
    model_.num_layers = 2;
    model_.weight_bytes = 1000;
    model_.bits_per_weight = 1.25;
    model_.kv_cache_dtype = "fp8_e4m3";
    cache_config_.num_blocks = 10;
    cache_config_.max_model_len = 2048;
    cache_config_.bytes = 4096;
  }

  std::unique_ptr<Metrics> Create() {
    auto metrics = Metrics::Create(options_, model_, cache_config_, &status_);
    EXPECT_TRUE(metrics.ok()) << metrics.status();
    return metrics.ok() ? *std::move(metrics) : nullptr;
  }

  // A request of one sample: arrival, +10 ms scheduled, +50 ms first token,
  // +250 ms last token and end.
  static RequestRecord Record() {
    RequestRecord record;
    record.max_tokens = 16;
    record.num_prompt_tokens = 7;
    record.num_generated_tokens = 11;
    record.finished_reason = "stop";
    const MonotonicTime start = MonotonicTime() + std::chrono::seconds(100);
    record.times.arrival = start;
    record.times.first_scheduled = start + milliseconds(10);
    record.times.first_token = start + milliseconds(50);
    record.times.last_token = start + milliseconds(250);
    record.times.finished = start + milliseconds(250);
    return record;
  }

  Metrics::Options options_;
  ModelInfo model_;
  CacheConfig cache_config_;
  LoopStatus status_;
};

constexpr char kLabels[] = R"({engine="0",model_name="tiny"})";

TEST_F(MetricsTest, FirstScrapeShowsEveryFamily) {
  const std::string text = Create()->Render();
  for (const char* suffix : {"num_requests_running",
                             "num_requests_waiting",
                             "kv_cache_usage_perc",
                             "prefix_cache_queries_total",
                             "prefix_cache_hits_total",
                             "num_preemptions_total",
                             "prompt_tokens_total",
                             "generation_tokens_total",
                             "request_success_total",
                             "time_to_first_token_seconds",
                             "inter_token_latency_seconds",
                             "request_time_per_output_token_seconds",
                             "e2e_request_latency_seconds",
                             "request_queue_time_seconds",
                             "request_prefill_time_seconds",
                             "request_decode_time_seconds",
                             "request_inference_time_seconds",
                             "request_prompt_tokens",
                             "request_generation_tokens",
                             "request_params_max_tokens",
                             "request_params_n",
                             "iteration_tokens_total",
                             "cache_config_info",
                             "corrupted_requests_total",
                             "admission_rejections_total",
                             "request_status_total",
                             "streams_open",
                             "mean_gate",
                             "build_info",
                             "model_info",
                             "model_bits_per_weight",
                             "model_weight_bytes",
                             "kv_cache_bytes"}) {
    EXPECT_THAT(text,
                HasSubstr(std::string("# TYPE binarymos_") + suffix + " "))
        << suffix;
  }
}

TEST_F(MetricsTest, NoFamilyAppearsTwice) {
  const std::string text = Create()->Render();
  const std::regex type_line("# TYPE ([^ ]+) ");
  std::set<std::string> names;
  for (std::sregex_iterator it(text.begin(), text.end(), type_line), end;
       it != end; ++it) {
    EXPECT_TRUE(names.insert((*it)[1]).second) << (*it)[1];
  }
  EXPECT_GT(names.size(), 30u);
}

TEST_F(MetricsTest, GaugesShowTheNewestStep) {
  const auto metrics = Create();
  SchedulerStats stats;
  stats.num_running = 3;
  stats.num_waiting = 4;
  stats.num_blocks = 10;
  stats.num_free_blocks = 6;
  stats.num_generated_tokens = 99;
  status_.Publish(stats);
  const std::string text = metrics->Render();
  EXPECT_THAT(text, HasSubstr(std::string("binarymos_num_requests_running") +
                              kLabels + " 3\n"));
  EXPECT_THAT(text, HasSubstr(std::string("binarymos_num_requests_waiting") +
                              kLabels + " 4\n"));
  EXPECT_THAT(text, HasSubstr(std::string("binarymos_generation_tokens_total") +
                              kLabels + " 99\n"));
  const std::regex usage(R"(binarymos_kv_cache_usage_perc\{.*\} 0\.[34]\d*\n)");
  EXPECT_TRUE(std::regex_search(text, usage));
}

TEST_F(MetricsTest, RoutersFindTheFiveNamesTheyReadUnlessSwitchedOff) {
  const std::vector<std::string> names = {
      "vllm:num_requests_running{", "vllm:num_requests_waiting{",
      "vllm:kv_cache_usage_perc{", "vllm:cache_config_info{",
      "vllm:lora_requests_info{"};
  std::string text = Create()->Render();
  for (const std::string& name : names) EXPECT_THAT(text, HasSubstr(name));
  EXPECT_THAT(text, HasSubstr(R"(num_gpu_blocks="10")"));
  EXPECT_THAT(text, HasSubstr(R"(block_size="16")"));
  EXPECT_THAT(text, HasSubstr(R"(cache_dtype="fp8_e4m3")"));

  options_.vllm_names = false;
  text = Create()->Render();
  EXPECT_THAT(text, Not(HasSubstr("vllm:")));
  EXPECT_THAT(text, HasSubstr("binarymos_cache_config_info{"));
}

TEST_F(MetricsTest, RequestTimesLandInTheirHistograms) {
  const auto metrics = Create();
  metrics->RecordRequest(Record());
  const std::string text = metrics->Render();
  const auto expect_sum = [&](const std::string& suffix, double expected) {
    const std::regex line("binarymos_" + suffix + R"(_sum\{[^}]*\} ([^\n]+))");
    std::smatch match;
    ASSERT_TRUE(std::regex_search(text, match, line)) << suffix;
    EXPECT_NEAR(std::stod(match[1]), expected, 1e-9) << suffix;
  };
  expect_sum("request_queue_time_seconds", .010);
  expect_sum("time_to_first_token_seconds", .050);
  expect_sum("request_prefill_time_seconds", .040);
  expect_sum("request_decode_time_seconds", .200);
  expect_sum("request_inference_time_seconds", .240);
  expect_sum("e2e_request_latency_seconds", .250);
  expect_sum("request_time_per_output_token_seconds", .020);
  expect_sum("request_prompt_tokens", 7);
  expect_sum("request_generation_tokens", 11);
  expect_sum("request_params_max_tokens", 16);
  EXPECT_THAT(text, HasSubstr(R"(finished_reason="stop"} 1)"));
  EXPECT_THAT(text, HasSubstr(R"(code="OK"} 1)"));
}

TEST_F(MetricsTest, ARequestThatNeverRanHasNoTimesButAnEnd) {
  RequestRecord record = Record();
  record.times.first_scheduled.reset();
  record.times.first_token.reset();
  record.times.last_token.reset();
  record.finished_reason = "abort";
  record.status = absl::DeadlineExceededError("too late");
  const auto metrics = Create();
  metrics->RecordRequest(record);
  const std::string text = metrics->Render();
  EXPECT_THAT(text, HasSubstr(std::string("time_to_first_token_seconds_count") +
                              kLabels + " 0\n"));
  EXPECT_THAT(text, HasSubstr(std::string("e2e_request_latency_seconds_count") +
                              kLabels + " 1\n"));
  EXPECT_THAT(text, HasSubstr(R"(code="DEADLINE_EXCEEDED"} 1)"));
  EXPECT_THAT(text, HasSubstr(R"(finished_reason="abort"} 1)"));
}

TEST_F(MetricsTest, RejectionsAreCountedByReasonAndByStatus) {
  const auto metrics = Create();
  metrics->RecordRejection(absl::ResourceExhaustedError("full"), "queue_full");
  const std::string text = metrics->Render();
  EXPECT_THAT(text, HasSubstr(R"(reason="queue_full"} 1)"));
  EXPECT_THAT(text, HasSubstr(R"(code="RESOURCE_EXHAUSTED"} 1)"));
  EXPECT_THAT(text, HasSubstr(R"(reason="draining"} 0)"));
}

TEST_F(MetricsTest, SubMillisecondTokensFallIntoDifferentBuckets) {
  const auto metrics = Create();
  metrics->RecordInterTokenLatency(std::chrono::microseconds(200));
  metrics->RecordInterTokenLatency(std::chrono::microseconds(700));
  const std::string text = metrics->Render();
  const std::string name = "binarymos_inter_token_latency_seconds_bucket";
  const std::string labels = R"({engine="0",model_name="tiny",le=")";
  EXPECT_THAT(text, HasSubstr(name + labels + R"(0.00025"} 1)"));
  EXPECT_THAT(text, HasSubstr(name + labels + R"(0.0005"} 1)"));
  EXPECT_THAT(text, HasSubstr(name + labels + R"(0.00075"} 2)"));
}

TEST_F(MetricsTest, StepTokensAreCumulativeBuckets) {
  SchedulerStats stats;
  stats.step_tokens.counts[0] = 5;  // up to 1 token
  stats.step_tokens.counts[1] = 2;  // up to 8
  stats.step_tokens.counts.back() = 1;
  stats.step_tokens.sum = 20000;
  status_.Publish(stats);
  const std::string text = Create()->Render();
  const std::string name = "binarymos_iteration_tokens_total";
  EXPECT_THAT(text, HasSubstr(R"(le="8"} 7)"));
  EXPECT_THAT(text, HasSubstr(R"(le="16384"} 7)"));
  EXPECT_THAT(text, HasSubstr(R"(le="+Inf"} 8)"));
  EXPECT_THAT(text, HasSubstr(name + "_count" + kLabels + " 8\n"));
  EXPECT_THAT(text, HasSubstr(name + "_sum" + kLabels + " 20000\n"));
}

TEST_F(MetricsTest, GatesAreLabelledByLayerAndExpert) {
  SchedulerStats stats;
  stats.mean_gate = {.25f, .75f, .5f, .5f};
  status_.Publish(stats);
  const std::string text = Create()->Render();
  EXPECT_THAT(text,
              HasSubstr(R"(expert="1",layer="0",model_name="tiny"} 0.75)"));
  EXPECT_THAT(text,
              HasSubstr(R"(expert="0",layer="1",model_name="tiny"} 0.5)"));
}

TEST_F(MetricsTest, OpenStreamsGoUpAndDown) {
  const auto metrics = Create();
  metrics->AddOpenStreams(3);
  metrics->AddOpenStreams(-1);
  EXPECT_THAT(
      metrics->Render(),
      HasSubstr(std::string("binarymos_streams_open") + kLabels + " 2\n"));
}

TEST_F(MetricsTest, LabelsOfHostileModelNamesAreEscaped) {
  options_.model_name = "a\"b\\c\nd";
  EXPECT_THAT(Create()->Render(), HasSubstr(R"(model_name="a\"b\\c\nd")"));
}

TEST_F(MetricsTest, ServesTheSameTextOverHttpOnAFreePort) {
  options_.http_address = "127.0.0.1:0";
  const auto metrics = Create();
  ASSERT_GT(metrics->http_port(), 0);
  const std::string answer = HttpGet(metrics->http_port(), "/metrics");
  EXPECT_THAT(answer, HasSubstr("200 OK"));
  EXPECT_THAT(answer, HasSubstr("binarymos_num_requests_running"));
  EXPECT_THAT(answer,
              HasSubstr("binarymos_time_to_first_token_seconds_bucket"));
  EXPECT_THAT(HttpGet(metrics->http_port(), "/"), HasSubstr("404"));
}

TEST_F(MetricsTest, WithoutAnAddressThereIsNoServer) {
  EXPECT_EQ(Create()->http_port(), -1);
}

TEST_F(MetricsTest, APortInUseIsUnavailable) {
  options_.http_address = "127.0.0.1:0";
  const auto first = Create();
  options_.http_address = "127.0.0.1:" + std::to_string(first->http_port());
  const auto second =
      Metrics::Create(options_, model_, cache_config_, &status_);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr(options_.http_address));
}

}  // namespace
}  // namespace binarymos
