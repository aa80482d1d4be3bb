// A server's life: listening, loading, serving, draining, ending.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "server/file_limit.h"
#include "server/server_with_loader.h"
#include "tests/server/raw_call.h"
#include "tests/server/server_fixture.h"

namespace binarymos {
namespace {

using grpc::StatusCode;
using ::testing::HasSubstr;
using Tok = FakeTokenizer;

const char* const kReadyNames[] = {"", "readiness", "binarymos.v1.Inference",
                                   "binarymos.v1.Control"};

class ServerTest : public ServerFixture {
 protected:
  Health Check(const std::string& service) {
    auto [status, health] = CheckHealth(channel_, service);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return health;
  }

  // Until the queue is closed, which is soon after RequestDrain.
  grpc::Status FirstRefusal() {
    while (true) {
      Stream stream(*inference_, EndlessRequest());
      if (stream.Read()) {
        stream.Cancel();
        stream.Finish();
        continue;
      }
      return stream.Finish();
    }
  }
};

TEST_F(ServerTest, HealthNamesAreServing) {
  Start();
  for (const char* name : kReadyNames) {
    EXPECT_EQ(Check(name), Health::kServing) << name;
  }
  EXPECT_EQ(Check("liveness"), Health::kServing);
  EXPECT_EQ(CheckHealth(channel_, "nobody").first.error_code(),
            StatusCode::NOT_FOUND);
  HealthWatch watch(channel_, "nobody");
  EXPECT_EQ(watch.Next(), Health::kServiceUnknown);
}

TEST_F(ServerTest, WhileLoadingItListensAndIsNotReady) {
  std::unique_ptr<HealthWatch> readiness;
  auto server = StartServer(config_, [&](Server& loading) {
    channel_ = Connect(loading.grpc_port());
    inference_ = v1::Inference::NewStub(channel_);
    control_ = v1::Control::NewStub(channel_);
    for (const char* name : kReadyNames) {
      EXPECT_EQ(Check(name), Health::kNotServing) << name;
    }
    EXPECT_EQ(Check("liveness"), Health::kServing);
    readiness = std::make_unique<HealthWatch>(channel_, "readiness");
    EXPECT_EQ(readiness->Next(), Health::kNotServing);

    v1::GenerateResponse response;
    EXPECT_EQ(Generate(Request("x"), &response).error_code(),
              StatusCode::UNAVAILABLE);
    grpc::ClientContext tokenize_context;
    v1::TokenizeResponse tokens;
    EXPECT_EQ(inference_->Tokenize(&tokenize_context, {}, &tokens).error_code(),
              StatusCode::UNAVAILABLE);
    grpc::ClientContext list_context;
    v1::ListModelsResponse models;
    EXPECT_TRUE(control_->ListModels(&list_context, {}, &models).ok());
    EXPECT_EQ(models.models_size(), 0);
    return std::make_unique<FakeEngine>();
  });
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_EQ(readiness->Next(), Health::kServing);
  v1::GenerateResponse response;
  EXPECT_TRUE(Generate(Request("x"), &response).ok());

  (*server)->RequestDrain();
  EXPECT_EQ(readiness->Next(), Health::kNotServing);
  readiness.reset();
  EXPECT_TRUE((*server)->Wait().ok());
}

TEST_F(ServerTest, LoadThatFailsIsTheStatusOfStart) {
  const auto server = StartServer(
      config_, [](Server&) -> absl::StatusOr<std::unique_ptr<Engine>> {
        return absl::InvalidArgumentError("config.json is missing");
      });
  EXPECT_EQ(server.status(),
            absl::InvalidArgumentError("config.json is missing"));
}

TEST_F(ServerTest, PortInUseIsUnavailable) {
  Start();
  ServerConfig config = config_;
  config.grpc_port = server_->grpc_port();
  const auto second =
      Server::StartWithEngine(config, std::make_unique<FakeEngine>());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr(absl::StrCat(config.grpc_port)));
}

TEST_F(ServerTest, InvalidConfigurationDoesNotStart) {
  config_.text_threads = 0;
  EXPECT_EQ(Server::Start(config_).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(ServerTest, DrainLetsStreamsFinishAndRefusesOthers) {
  Start();
  gate().Close();
  Stream stream(*inference_, Request("x", 30));
  gate().Allow(3);
  ASSERT_TRUE(stream.ReadTokens(1));
  HealthWatch readiness(channel_, "readiness");
  EXPECT_EQ(readiness.Next(), Health::kServing);

  server_->RequestDrain();
  EXPECT_EQ(readiness.Next(), Health::kNotServing);
  const grpc::Status refused = FirstRefusal();
  EXPECT_EQ(refused.error_code(), StatusCode::UNAVAILABLE);
  EXPECT_EQ(Check("liveness"), Health::kServing);
  server_->RequestDrain();  // once more changes nothing
  v1::GetServerInfoResponse info;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(control_->GetServerInfo(&context, {}, &info).ok());
  }
  EXPECT_TRUE(info.draining());

  gate().Open();
  EXPECT_TRUE(stream.Finish().ok());
  EXPECT_EQ(stream.token_ids().size(), 30u);
  EXPECT_TRUE(server_->Wait().ok());
  engine_ = nullptr;
  server_.reset();
}

TEST_F(ServerTest, DrainDelayKeepsAccepting) {
  config_.drain_delay = std::chrono::hours(1);
  Start();
  HealthWatch readiness(channel_, "");
  EXPECT_EQ(readiness.Next(), Health::kServing);
  server_->RequestDrain();
  EXPECT_EQ(readiness.Next(), Health::kNotServing);
  v1::GenerateResponse response;
  EXPECT_TRUE(Generate(Request("x"), &response).ok());
  server_->RequestStop();
  EXPECT_TRUE(server_->Wait().ok());
}

TEST_F(ServerTest, DrainTimeoutCutsStreams) {
  config_.drain_timeout = std::chrono::milliseconds(50);
  Start();
  Stream stream(*inference_, EndlessRequest());
  ASSERT_TRUE(stream.ReadTokens(1));
  server_->RequestDrain();
  const grpc::Status status = stream.Finish();
  EXPECT_EQ(status.error_code(), StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("shut down"));
  EXPECT_EQ(server_->Wait().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(ServerTest, StopEndsARunningDrain) {
  config_.drain_timeout = std::chrono::hours(1);
  Start();
  Stream stream(*inference_, EndlessRequest());
  ASSERT_TRUE(stream.ReadTokens(1));
  server_->RequestDrain();
  server_->RequestStop();
  EXPECT_EQ(stream.Finish().error_code(), StatusCode::UNAVAILABLE);
  EXPECT_TRUE(server_->Wait().ok());
}

TEST_F(ServerTest, ControlDrainIsTheSameDrain) {
  Start();
  grpc::ClientContext context;
  v1::DrainResponse response;
  EXPECT_TRUE(control_->Drain(&context, {}, &response).ok());
  EXPECT_TRUE(server_->Wait().ok());
}

TEST_F(ServerTest, DestructorEndsEverything) {
  Start();
  Stream stream(*inference_, EndlessRequest());
  ASSERT_TRUE(stream.ReadTokens(1));
  engine_ = nullptr;
  server_.reset();
  EXPECT_EQ(stream.Finish().error_code(), StatusCode::UNAVAILABLE);
}

TEST_F(ServerTest, FailedRunnerTellsTheStreamsAndEndsTheServer) {
  Start();
  HealthWatch liveness(channel_, "liveness");
  HealthWatch readiness(channel_, "readiness");
  EXPECT_EQ(liveness.Next(), Health::kServing);
  EXPECT_EQ(readiness.Next(), Health::kServing);
  Stream first(*inference_, EndlessRequest());
  Stream second(*inference_, EndlessRequest());
  ASSERT_TRUE(first.ReadTokens(1));
  ASSERT_TRUE(second.ReadTokens(1));
  engine_->runner().fail = true;
  for (Stream* stream : {&first, &second}) {
    const grpc::Status status = stream->Finish();
    EXPECT_EQ(status.error_code(), StatusCode::INTERNAL);
    EXPECT_EQ(status.error_message(), "the device is lost");
  }
  EXPECT_EQ(liveness.Next(), Health::kNotServing);
  EXPECT_EQ(readiness.Next(), Health::kNotServing);
  EXPECT_EQ(server_->Wait(), absl::InternalError("the device is lost"));
}

TEST_F(ServerTest, StalledReaderDoesNotHoldUpTheEnd) {
  Start([](const std::vector<TokenId>&, const SamplingParams&, int, int) {
    return Tok::kLong;
  });
  Stream stalled(*inference_, Request("x", 500'000));
  // Given up no sooner than the buffer is full, at 1 KiB per token.
  const int64_t num_buffered = config_.stream_buffer_bytes / 1024;
  EXPECT_TRUE(WaitForLoad([&](const v1::GetLoadResponse& load) {
    return load.num_generated_tokens() > num_buffered &&
           load.num_running() == 0;
  }));
  server_->RequestStop();
  EXPECT_TRUE(server_->Wait().ok());
}

TEST_F(ServerTest, ReflectionListsTheServices) {
  for (const bool enabled : {true, false}) {
    config_.reflection = enabled;
    Start();
    RawCall call(channel_,
                 "/grpc.reflection.v1alpha.ServerReflection/"
                 "ServerReflectionInfo");
    call.Send(std::string("\x3a\x00", 2));  // list_services
    const std::optional<std::string> answer = call.Read();
    EXPECT_EQ(answer.has_value(), enabled);
    if (answer) {
      EXPECT_THAT(*answer, HasSubstr("binarymos.v1.Inference"));
      EXPECT_THAT(*answer, HasSubstr("binarymos.v1.Control"));
    } else {
      EXPECT_EQ(call.Finish().error_code(), StatusCode::UNIMPLEMENTED);
    }
    engine_ = nullptr;
    server_.reset();
  }
}

TEST_F(ServerTest, MessagesAreLimited) {
  config_.max_message_bytes = 4096;
  Start();
  v1::GenerateResponse response;
  EXPECT_EQ(Generate(Request(std::string(5000, 'a')), &response).error_code(),
            StatusCode::RESOURCE_EXHAUSTED);
}

std::string HttpGet(int port, const std::string& path) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer;
  const std::string request = "GET " + path +
                              " HTTP/1.1\r\nHost: localhost\r\n"
                              "Connection: close\r\n\r\n";
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) ==
          0 &&
      send(fd, request.data(), request.size(), 0) ==
          static_cast<ssize_t>(request.size())) {
    char buffer[4096];
    for (ssize_t n; (n = recv(fd, buffer, sizeof(buffer), 0)) > 0;) {
      answer.append(buffer, static_cast<size_t>(n));
    }
  }
  close(fd);
  return answer;
}

TEST_F(ServerTest, MetricsCountRequestsAndRejections) {
  config_.http_port = 0;
  Start();
  ASSERT_GT(server_->http_port(), 0);
  v1::GenerateResponse response;
  ASSERT_TRUE(Generate(Request("x", 12), &response).ok());
  v1::GenerateRequest bad = Request("x");
  bad.set_n(0);
  EXPECT_FALSE(Generate(bad, &response).ok());
  const std::string metrics = HttpGet(server_->http_port(), "/metrics");
  EXPECT_THAT(metrics, HasSubstr("binarymos_request_success_total{"));
  EXPECT_THAT(metrics,
              ::testing::ContainsRegex("binarymos_request_success_total\\{[^}]*"
                                       "finished_reason=\"length\"[^}]*\\} 1"));
  EXPECT_THAT(metrics, ::testing::ContainsRegex(
                           "binarymos_admission_rejections_total\\{[^}]*"
                           "reason=\"invalid\"[^}]*\\} 1"));
  EXPECT_THAT(metrics, ::testing::ContainsRegex(
                           "binarymos_generation_tokens_total\\{[^}]*\\} 12"));
}

TEST(FileLimitTest, LimitIsRaisedAsFarAsItMay) {
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit low = before;
  low.rlim_cur = std::min<rlim_t>(before.rlim_max, 256);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  EXPECT_GT(RaiseFileLimit(), 0);
  rlimit after{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &after), 0);
  EXPECT_EQ(after.rlim_cur, before.rlim_max);
}

}  // namespace
}  // namespace binarymos
