// Streams: many, slow, cancelled, late.
#include <thread>

#include "tests/server/server_fixture.h"

namespace binarymos {
namespace {

using grpc::StatusCode;
using ::testing::HasSubstr;
using Tok = FakeTokenizer;

class GenerateReactorTest : public ServerFixture {
 protected:
  // GetLoad while the loop does not stand at the gate.
  int64_t UsedTokens() { return Load().kv_used_tokens(); }
};

TEST_F(GenerateReactorTest, FirstMessageComesBeforeTheFirstToken) {
  Start();
  gate().Close();
  Stream stream(*inference_, Request("abc"));
  ASSERT_TRUE(stream.Read());
  const v1::GenerateStreamResponse& first = stream.messages()[0];
  ASSERT_TRUE(first.has_started());
  EXPECT_EQ(first.started().model(), "fake");
  EXPECT_EQ(first.started().prompt_tokens(), 5);
  EXPECT_EQ(first.started().seed(), 1u);
  EXPECT_EQ(first.deltas_size(), 0);
  gate().Open();
  EXPECT_TRUE(stream.Finish().ok());
}

TEST_F(GenerateReactorTest, TokensArriveWithTheirStep) {
  Start();
  gate().Close();
  Stream stream(*inference_, Request("abc", 9));
  for (int i = 1; i <= 3; ++i) {
    gate().Allow(1);
    // A result is taken once the next step is planned, which has to pass too.
    if (i == 1) gate().Allow(1);
    ASSERT_TRUE(stream.ReadTokens(i));
    EXPECT_EQ(stream.token_ids().size(), static_cast<size_t>(i));
  }
  gate().Open();
  EXPECT_TRUE(stream.Finish().ok());
  const v1::GenerateStreamResponse& last = stream.messages().back();
  EXPECT_TRUE(last.has_ended());
  EXPECT_EQ(last.ended().usage().completion_tokens(), 9);
  EXPECT_GT(last.ended().timing().total_seconds(), 0);
  EXPECT_EQ(stream.last_delta()->finish_reason(), v1::FINISH_REASON_LENGTH);
}

TEST_F(GenerateReactorTest, SixtyFourStreamsAllFinish) {
  Start();
  v1::GenerateResponse expected;
  ASSERT_TRUE(Generate(Request("same", 200), &expected).ok());
  std::vector<std::thread> clients;
  std::atomic<int> num_equal{0};
  for (int i = 0; i < 64; ++i) {
    clients.emplace_back([&] {
      Stream stream(*inference_, Request("same", 200));
      const bool ok = stream.Finish().ok();
      if (ok && stream.text() == expected.completions(0).text()) ++num_equal;
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(num_equal, 64);
  EXPECT_TRUE(WaitUntilIdle());
}

TEST_F(GenerateReactorTest, CancelGivesTheBlocksBack) {
  Start();
  Stream stream(*inference_, EndlessRequest());
  ASSERT_TRUE(stream.ReadTokens(3));
  EXPECT_GT(UsedTokens(), 0);
  stream.Cancel();
  EXPECT_TRUE(WaitUntilIdle());
  EXPECT_EQ(stream.Finish().error_code(), StatusCode::CANCELLED);
}

TEST_F(GenerateReactorTest, CancelledUnaryCallGivesTheBlocksBack) {
  Start();
  grpc::ClientContext context;
  std::thread client([&] {
    v1::GenerateResponse response;
    EXPECT_EQ(inference_->Generate(&context, EndlessRequest(), &response)
                  .error_code(),
              StatusCode::CANCELLED);
  });
  EXPECT_TRUE(WaitForLoad(
      [](const v1::GetLoadResponse& load) { return load.num_running() == 1; }));
  context.TryCancel();
  client.join();
  EXPECT_TRUE(WaitUntilIdle());
}

TEST_F(GenerateReactorTest, KillingHalfOfTheStreamsLeavesTheOthersAlone) {
  Start();
  std::vector<std::unique_ptr<Stream>> streams;
  for (int i = 0; i < 64; ++i) {
    // The second half goes on until it is killed.
    streams.push_back(std::make_unique<Stream>(
        *inference_, i < 32 ? Request("x", 300) : EndlessRequest()));
  }
  for (auto& stream : streams) ASSERT_TRUE(stream->ReadTokens(1));
  for (int i = 32; i < 64; ++i) streams[i]->Cancel();
  for (int i = 0; i < 32; ++i) {
    ASSERT_TRUE(streams[i]->Finish().ok());
    EXPECT_EQ(streams[i]->token_ids().size(), 300u);
    EXPECT_EQ(streams[i]->text(), streams[0]->text());
  }
  EXPECT_TRUE(WaitUntilIdle());
}

TEST_F(GenerateReactorTest, ConnectionThatBreaksCancels) {
  Start();
  auto channel = Connect(server_->grpc_port());
  auto stub = v1::Inference::NewStub(channel);
  {
    Stream stream(*stub, EndlessRequest());
    ASSERT_TRUE(stream.ReadTokens(1));
    EXPECT_EQ(Load().num_running(), 1);
    stream.Cancel();
    stream.Finish();
  }
  stub.reset();
  channel.reset();
  EXPECT_TRUE(WaitUntilIdle());
}

TEST_F(GenerateReactorTest, DeadlineOfTheCallEndsARunningRequest) {
  Start();
  Stream stream(*inference_, EndlessRequest(), [](grpc::ClientContext& c) {
    c.set_deadline(std::chrono::system_clock::now() +
                   std::chrono::milliseconds(100));
  });
  EXPECT_EQ(stream.Finish().error_code(), StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(WaitUntilIdle());
}

TEST_F(GenerateReactorTest, TimeLimitEndsARunningRequest) {
  Start();
  v1::GenerateRequest request = EndlessRequest();
  request.set_time_limit_ms(100);
  Stream stream(*inference_, request);
  EXPECT_EQ(stream.Finish().error_code(), StatusCode::DEADLINE_EXCEEDED);
  EXPECT_GT(stream.token_ids().size(), 0u);
  EXPECT_FALSE(stream.messages().back().has_ended());
  EXPECT_TRUE(WaitUntilIdle());
}

TEST_F(GenerateReactorTest, TimeLimitEndsAQueuedRequest) {
  auto engine = std::make_unique<FakeEngine>();
  engine->cache.max_num_seqs = 1;
  Start(std::move(engine));
  Stream running(*inference_, EndlessRequest());
  ASSERT_TRUE(running.ReadTokens(1));
  v1::GenerateRequest request = Request("x");
  request.set_time_limit_ms(20);
  Stream queued(*inference_, request);
  EXPECT_EQ(queued.Finish().error_code(), StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(queued.token_ids().size(), 0u);
  EXPECT_TRUE(running.ReadTokens(2));
  running.Cancel();
}

TEST_F(GenerateReactorTest, LimitsOfQueueAndFirstTokenEndAQueuedRequest) {
  auto engine = std::make_unique<FakeEngine>();
  engine->cache.max_num_seqs = 1;
  Start(std::move(engine));
  Stream running(*inference_, EndlessRequest());
  ASSERT_TRUE(running.ReadTokens(1));
  v1::GenerateRequest request = Request("x");
  request.set_queue_time_limit_ms(20);
  Stream queued(*inference_, request);
  const grpc::Status status = queued.Finish();
  EXPECT_EQ(status.error_code(), StatusCode::DEADLINE_EXCEEDED);
  EXPECT_THAT(status.error_message(), HasSubstr("queue"));
  request.clear_queue_time_limit_ms();
  request.set_first_token_time_limit_ms(20);
  Stream tokenless(*inference_, request);
  EXPECT_EQ(tokenless.Finish().error_code(), StatusCode::DEADLINE_EXCEEDED);
  running.Cancel();
}

TEST_F(GenerateReactorTest, LimitsOfQueueAndFirstTokenSpareARunningRequest) {
  Start();
  v1::GenerateRequest request = EndlessRequest();
  request.set_queue_time_limit_ms(10'000);
  request.set_first_token_time_limit_ms(10'000);
  request.set_time_limit_ms(200);
  Stream stream(*inference_, request);
  ASSERT_TRUE(stream.ReadTokens(1));
  EXPECT_EQ(stream.Finish().error_code(), StatusCode::DEADLINE_EXCEEDED);
}

TEST_F(GenerateReactorTest, ReaderThatStallsLosesItsStreamWhileMuchFits) {
  config_.stream_buffer_bytes = 1 << 30;
  config_.write_stall_timeout = std::chrono::milliseconds(50);
  // 1 KiB per token, and more of them than any window holds.
  Start([](const std::vector<TokenId>&, const SamplingParams&, int, int) {
    return Tok::kLong;
  });
  Stream stalled(*inference_, Request("slow", 500'000));
  // Nobody reads: the blocks come back long before the buffer is full.
  EXPECT_TRUE(WaitForLoad([](const v1::GetLoadResponse& load) {
    return load.num_running() == 0 && load.num_generated_tokens() > 100;
  }));
  EXPECT_TRUE(WaitUntilIdle());
  const grpc::Status status = stalled.Finish();
  EXPECT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("not read"));
}

TEST_F(GenerateReactorTest, StalledReaderCostsNoThreadAndLosesItsStream) {
  config_.text_threads = 1;
  config_.stream_buffer_bytes = 64 << 10;
  // Prompts that end with "!" get 1 KiB per token, and more of them than any
  // window holds.
  Start([](const std::vector<TokenId>& prompt, const SamplingParams&, int,
           int index) {
    return prompt.back() == Tok::Byte('!') ? Tok::kLong
                                           : Tok::Byte('a' + index % 26);
  });
  Stream stalled(*inference_, Request("slow!", 500'000));
  // Nobody reads. Others are served as ever, and the request is given up.
  EXPECT_TRUE(WaitForLoad([&](const v1::GetLoadResponse& load) {
    Stream other(*inference_, Request("x", 20));
    EXPECT_TRUE(other.Finish().ok());
    EXPECT_EQ(other.token_ids().size(), 20u);
    return load.num_running() == 0 && load.num_generated_tokens() > 100;
  }));
  EXPECT_TRUE(WaitUntilIdle());
  const grpc::Status status = stalled.Finish();
  EXPECT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("too slowly"));
  EXPECT_LT(stalled.token_ids().size(), 500'000u);
}

TEST_F(GenerateReactorTest, DeltasAreMergedWhileTheReaderIsBusy) {
  Start();
  Stream stream(*inference_, Request("x", 20'000));
  EXPECT_TRUE(stream.Finish().ok());
  EXPECT_EQ(stream.token_ids().size(), 20'000u);
  EXPECT_EQ(stream.text().size(), 20'000u);
  EXPECT_LT(stream.messages().size(), 20'000u);
}

TEST_F(GenerateReactorTest, LargePromptOutputIsNoSlowness) {
  config_.stream_buffer_bytes = 4096;
  Start();
  v1::GenerateRequest request = Request(std::string(20'000, 'a'), 2);
  request.set_echo(true);
  request.set_n(2);
  request.set_prompt_logprobs(20);
  Stream stream(*inference_, request);
  const grpc::Status status = stream.Finish();
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(stream.text(1).size(), 20'002u);
}

TEST_F(GenerateReactorTest, AbortByNameEndsTheStream) {
  Start();
  const auto named = [](const char* name) {
    return [name](grpc::ClientContext& context) {
      context.AddMetadata("x-request-id", name);
    };
  };
  Stream first(*inference_, EndlessRequest(), named("twin"));
  Stream second(*inference_, EndlessRequest(), named("twin"));
  Stream other(*inference_, EndlessRequest(), named("other"));
  for (Stream* stream : {&first, &second, &other}) {
    ASSERT_TRUE(stream->ReadTokens(1));
  }
  v1::AbortRequest request;
  request.add_request_ids("twin");
  request.add_request_ids("nobody");
  v1::AbortResponse response;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(control_->Abort(&context, request, &response).ok());
  }
  EXPECT_EQ(response.num_found(), 2);
  EXPECT_EQ(first.Finish().error_code(), StatusCode::CANCELLED);
  EXPECT_EQ(second.Finish().error_code(), StatusCode::CANCELLED);
  EXPECT_TRUE(other.ReadTokens(static_cast<int>(other.token_ids().size()) + 1));
  other.Cancel();

  EXPECT_TRUE(WaitUntilIdle());
  grpc::ClientContext context;
  ASSERT_TRUE(control_->Abort(&context, request, &response).ok());
  EXPECT_EQ(response.num_found(), 0);
}

}  // namespace
}  // namespace binarymos
