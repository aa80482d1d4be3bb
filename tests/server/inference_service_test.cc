// Generate, Tokenize and Detokenize through a real channel.
#include <algorithm>
#include <cmath>
#include <string>
#include <thread>
#include <vector>

#include "tests/server/server_fixture.h"

namespace binarymos {
namespace {

using grpc::StatusCode;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Tok = FakeTokenizer;

class InferenceServiceTest : public ServerFixture {};

TEST_F(InferenceServiceTest, GenerateAnswersWithTextTokensAndUsage) {
  Start(Say("Hello."));
  v1::GenerateResponse response;
  const grpc::Status status = Generate(Request("abc", 100), &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.model(), "fake");
  EXPECT_EQ(response.seed(), 1u);
  EXPECT_FALSE(response.request_id().empty());
  ASSERT_EQ(response.completions_size(), 1);
  const v1::Completion& completion = response.completions(0);
  EXPECT_EQ(completion.text(), "Hello.");
  EXPECT_EQ(completion.finish_reason(), v1::FINISH_REASON_EOS);
  ASSERT_EQ(completion.token_ids_size(), 7);  // EOS among them
  EXPECT_EQ(completion.token_ids(6), Tok::kEos);
  EXPECT_EQ(completion.logprobs_size(), 0);
  EXPECT_EQ(response.usage().prompt_tokens(), 5);  // BOS, space, abc
  EXPECT_EQ(response.usage().completion_tokens(), 7);
  EXPECT_EQ(response.usage().cached_tokens(), 0);
  const v1::Timing& timing = response.timing();
  EXPECT_GT(timing.queue_seconds(), 0);
  EXPECT_GE(timing.ttft_seconds(), timing.queue_seconds());
  EXPECT_GE(timing.decode_seconds(), 0);
  EXPECT_GE(timing.total_seconds(),
            timing.ttft_seconds() + timing.decode_seconds());
}

TEST_F(InferenceServiceTest, StreamingEqualsUnary) {
  Start();
  for (const int n : {1, 3}) {
    v1::GenerateRequest request = Request("tell me", 40);
    request.set_n(n);
    request.set_logprobs(2);
    request.set_prompt_logprobs(1);
    request.set_echo(n == 3);
    v1::GenerateResponse unary;
    ASSERT_TRUE(Generate(request, &unary).ok());
    Stream stream(*inference_, request);
    ASSERT_TRUE(stream.Finish().ok());

    ASSERT_EQ(unary.completions_size(), n);
    int num_prompt_logprobs = 0;
    for (int i = 0; i < n; ++i) {
      const v1::Completion& completion = unary.completions(i);
      EXPECT_EQ(completion.index(), i);
      EXPECT_EQ(stream.text(i), completion.text());
      EXPECT_EQ(stream.token_ids(i),
                std::vector<int>(completion.token_ids().begin(),
                                 completion.token_ids().end()));
      EXPECT_EQ(stream.last_delta(i)->finish_reason(),
                completion.finish_reason());
      EXPECT_EQ(completion.finish_reason(), v1::FINISH_REASON_LENGTH);
      std::string from_stream;
      std::string from_unary;
      for (const auto& message : stream.messages()) {
        for (const auto& delta : message.deltas()) {
          if (delta.index() != i) continue;
          for (const auto& entry : delta.logprobs()) {
            from_stream += entry.ShortDebugString();
          }
        }
      }
      for (const auto& entry : completion.logprobs()) {
        from_unary += entry.ShortDebugString();
      }
      EXPECT_EQ(completion.logprobs_size(), 40);
      EXPECT_EQ(from_stream, from_unary);
    }
    for (const auto& message : stream.messages()) {
      num_prompt_logprobs += message.prompt_logprobs_size();
    }
    EXPECT_EQ(num_prompt_logprobs, unary.prompt_logprobs_size());
    EXPECT_EQ(stream.usage().completion_tokens(), 40 * n);
    EXPECT_EQ(unary.usage().completion_tokens(), 40 * n);
  }
}

TEST_F(InferenceServiceTest, SamplesOfOnePromptDiffer) {
  Start();
  v1::GenerateRequest request = Request("x", 5);
  request.set_n(3);
  v1::GenerateResponse response;
  ASSERT_TRUE(Generate(request, &response).ok());
  ASSERT_EQ(response.completions_size(), 3);
  EXPECT_NE(response.completions(0).text(), response.completions(1).text());
  EXPECT_NE(response.completions(1).text(), response.completions(2).text());
  EXPECT_EQ(response.usage().prompt_tokens(), 3);
}

TEST_F(InferenceServiceTest, LogprobsCarryTokensAndTheirBytes) {
  Start(Emit({Tok::kCafe, Tok::kAcute}));
  v1::GenerateRequest request = Request("ab");
  request.set_logprobs(2);
  request.set_prompt_logprobs(0);
  v1::GenerateResponse response;
  ASSERT_TRUE(Generate(request, &response).ok());
  const v1::Completion& completion = response.completions(0);
  EXPECT_EQ(completion.text(), "caf\xC3\xA9 au");
  ASSERT_EQ(completion.logprobs_size(), 3);
  EXPECT_EQ(completion.logprobs(0).chosen().piece(), "caf\xC3");
  EXPECT_EQ(completion.logprobs(0).chosen().logprob(), -0.5f);
  ASSERT_EQ(completion.logprobs(0).top_size(), 2);
  EXPECT_EQ(completion.logprobs(0).top(1).token(), Tok::kAcute);
  EXPECT_EQ(completion.logprobs(2).chosen().piece(), "</s>");
  // BOS has none; " ", "a" and "b" do.
  ASSERT_EQ(response.prompt_logprobs_size(), 3);
  EXPECT_EQ(response.prompt_logprobs(1).chosen().piece(), "a");
  EXPECT_EQ(response.prompt_logprobs(1).top_size(), 0);
}

TEST_F(InferenceServiceTest, TokenIdsArePromptsAsTheyAre) {
  Start();
  v1::GenerateRequest request = Request("", 1);
  request.mutable_tokens()->add_ids(Tok::kThe);
  request.set_echo(true);
  v1::GenerateResponse response;
  ASSERT_TRUE(Generate(request, &response).ok());
  EXPECT_EQ(response.usage().prompt_tokens(), 1);
  EXPECT_EQ(response.completions(0).token_ids(0), Tok::kThe);
  EXPECT_EQ(response.completions(0).text().substr(0, 3), "the");
  EXPECT_EQ(response.completions(0).token_ids_size(), 2);
}

TEST_F(InferenceServiceTest, EmptyTextIsAPromptOfBos) {
  Start(Emit({Tok::kThe}));
  v1::GenerateResponse response;
  ASSERT_TRUE(Generate(Request(""), &response).ok());
  EXPECT_EQ(response.usage().prompt_tokens(), 1);
  EXPECT_EQ(response.completions(0).text(), "the");
}

TEST_F(InferenceServiceTest, ServerDrawsASeedAndReportsIt) {
  Start();
  v1::GenerateRequest request = Request("x", 20);
  request.mutable_sampling()->clear_seed();
  v1::GenerateResponse first;
  v1::GenerateResponse second;
  ASSERT_TRUE(Generate(request, &first).ok());
  ASSERT_TRUE(Generate(request, &second).ok());
  EXPECT_NE(first.seed(), second.seed());
  request.mutable_sampling()->set_seed(first.seed());
  v1::GenerateResponse again;
  ASSERT_TRUE(Generate(request, &again).ok());
  EXPECT_EQ(again.completions(0).text(), first.completions(0).text());
}

TEST_F(InferenceServiceTest, MaxTokensDefaultsToTheServersOrWhatIsLeft) {
  config_.default_max_tokens = 12;
  auto engine = std::make_unique<FakeEngine>();
  engine->cache.max_model_len = 20;
  Start(std::move(engine));
  v1::GenerateRequest request;
  request.set_text("ab");
  v1::GenerateResponse response;
  ASSERT_TRUE(Generate(request, &response).ok());
  EXPECT_EQ(response.usage().completion_tokens(), 12);
  request.set_text("abcdefghijkl");  // 14 tokens
  ASSERT_TRUE(Generate(request, &response).ok());
  EXPECT_EQ(response.usage().completion_tokens(), 6);
}

// --- Where a sample ends ---

TEST_F(InferenceServiceTest, StopStringAcrossTokensEndsTheText) {
  Start(Say("one two three"));
  for (const bool include : {false, true}) {
    v1::GenerateRequest request = Request("x", 100);
    request.mutable_stop()->add_stop_strings(std::string("never"));
    request.mutable_stop()->add_stop_strings(std::string("two"));
    request.mutable_stop()->set_include_stop_string(include);
    v1::GenerateResponse response;
    ASSERT_TRUE(Generate(request, &response).ok());
    const v1::Completion& completion = response.completions(0);
    EXPECT_EQ(completion.text(), include ? "one two" : "one ");
    EXPECT_EQ(completion.finish_reason(), v1::FINISH_REASON_STOP_STRING);
    EXPECT_EQ(completion.matched_stop_string(), "two");
    // Tokens past the stop are not reported, though they were computed.
    EXPECT_EQ(completion.token_ids_size(), 7);
    EXPECT_EQ(response.usage().completion_tokens(), 7);

    Stream stream(*inference_, request);
    ASSERT_TRUE(stream.Finish().ok());
    EXPECT_EQ(stream.text(), completion.text());
    EXPECT_EQ(stream.token_ids().size(), 7u);
    EXPECT_EQ(stream.last_delta()->matched_stop_string(), "two");
  }
}

TEST_F(InferenceServiceTest, StopStringEndsTheComputationToo) {
  Start();
  v1::GenerateRequest request = EndlessRequest();
  request.mutable_stop()->add_stop_strings(std::string("xyz"));
  v1::GenerateResponse response;
  ASSERT_TRUE(Generate(request, &response).ok());
  EXPECT_EQ(response.completions(0).finish_reason(),
            v1::FINISH_REASON_STOP_STRING);
  EXPECT_TRUE(WaitUntilIdle());
}

TEST_F(InferenceServiceTest, StopStringEndsItsSampleOnly) {
  // Sample 1 says "s" first, the others later than they may speak.
  Start([](const std::vector<TokenId>&, const SamplingParams&, int sample,
           int index) {
    return Tok::Byte(sample == 1 && index == 2 ? '!' : 'a');
  });
  v1::GenerateRequest request = Request("x", 6);
  request.set_n(3);
  request.mutable_stop()->add_stop_strings(std::string("!"));
  v1::GenerateResponse response;
  ASSERT_TRUE(Generate(request, &response).ok());
  EXPECT_EQ(response.completions(0).text(), "aaaaaa");
  EXPECT_EQ(response.completions(1).text(), "aa");
  EXPECT_EQ(response.completions(1).finish_reason(),
            v1::FINISH_REASON_STOP_STRING);
  EXPECT_EQ(response.completions(2).text(), "aaaaaa");
  EXPECT_EQ(response.usage().completion_tokens(), 15);
}

TEST_F(InferenceServiceTest, StopTokenIsReportedAndItsTextIsNot) {
  Start(Say("ab.c"));
  v1::GenerateRequest request = Request("x", 100);
  request.mutable_stop()->add_stop_token_ids(Tok::Byte('.'));
  v1::GenerateResponse response;
  ASSERT_TRUE(Generate(request, &response).ok());
  const v1::Completion& completion = response.completions(0);
  EXPECT_EQ(completion.text(), "ab");
  EXPECT_EQ(completion.finish_reason(), v1::FINISH_REASON_STOP_TOKEN);
  EXPECT_EQ(completion.matched_stop_token(), Tok::Byte('.'));
  EXPECT_FALSE(completion.has_matched_stop_string());
  EXPECT_EQ(completion.token_ids_size(), 3);
}

TEST_F(InferenceServiceTest, MinTokensKeepsStopsAway) {
  Start(Say("a.b.c."));
  v1::GenerateRequest request = Request("x", 100);
  request.mutable_stop()->add_stop_strings(std::string("."));
  request.mutable_stop()->set_min_tokens(3);
  v1::GenerateResponse response;
  ASSERT_TRUE(Generate(request, &response).ok());
  EXPECT_EQ(response.completions(0).text(), "a.b");
  EXPECT_EQ(response.completions(0).token_ids_size(), 4);
}

TEST_F(InferenceServiceTest, MinTokensKeepsEosAway) {
  Start(Say("ab"));
  v1::GenerateRequest request = Request("x", 100);
  request.mutable_stop()->set_min_tokens(5);
  v1::GenerateResponse response;
  ASSERT_TRUE(Generate(request, &response).ok());
  EXPECT_EQ(response.completions(0).text(), "abmmm");
  EXPECT_EQ(response.completions(0).finish_reason(), v1::FINISH_REASON_EOS);
}

TEST_F(InferenceServiceTest, IgnoreEosGoesOnToMaxTokens) {
  Start(Say("ab"));
  v1::GenerateRequest request = Request("x", 6);
  request.mutable_stop()->set_ignore_eos(true);
  v1::GenerateResponse response;
  ASSERT_TRUE(Generate(request, &response).ok());
  EXPECT_EQ(response.completions(0).text(), "ab");
  EXPECT_EQ(response.completions(0).finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(response.completions(0).token_ids_size(), 6);
}

TEST_F(InferenceServiceTest, CharacterSplitOverTokensArrivesWhole) {
  Start(Say("h\xC3\xA9 \xF0\x9F\x98\x80!"));
  Stream stream(*inference_, Request("x", 100));
  ASSERT_TRUE(stream.Finish().ok());
  EXPECT_EQ(stream.text(), "h\xC3\xA9 \xF0\x9F\x98\x80!");
  EXPECT_EQ(stream.token_ids().size(), 10u);
}

TEST_F(InferenceServiceTest, CharacterCutByMaxTokensIsReplaced) {
  Start(Say("a\xE2\x82\xAC"));
  v1::GenerateResponse response;
  ASSERT_TRUE(Generate(Request("x", 3), &response).ok());
  EXPECT_EQ(response.completions(0).text(), "a\xEF\xBF\xBD\xEF\xBF\xBD");
}

TEST_F(InferenceServiceTest, EchoBeginsEachSampleWithThePrompt) {
  Start(Say(" there"));
  v1::GenerateRequest request = Request("hello", 100);
  request.set_echo(true);
  request.set_n(2);
  v1::GenerateResponse response;
  ASSERT_TRUE(Generate(request, &response).ok());
  for (const v1::Completion& completion : response.completions()) {
    EXPECT_EQ(completion.text(), "hello there");
    EXPECT_EQ(completion.token_ids_size(), 7 + 7);
    EXPECT_EQ(completion.token_ids(0), Tok::kBos);
  }
  EXPECT_EQ(response.usage().completion_tokens(), 14);
}

// --- Errors ---

TEST_F(InferenceServiceTest, LogitsThatAreNotFiniteEndTheRequestOnly) {
  Start([](const std::vector<TokenId>& prompt, const SamplingParams&, int,
           int index) {
    const bool bad = prompt.back() == Tok::Byte('!') && index == 3;
    return bad ? kNotFinite : Tok::Byte('a');
  });
  Stream good(*inference_, Request("good", 50));
  Stream bad(*inference_, Request("bad!", 50));
  const grpc::Status status = bad.Finish();
  EXPECT_EQ(status.error_code(), StatusCode::INTERNAL);
  EXPECT_EQ(bad.text(), "aaa");
  EXPECT_TRUE(good.Finish().ok());
  EXPECT_EQ(good.token_ids().size(), 50u);
}

TEST_F(InferenceServiceTest, ErrorOfOneSampleEndsTheRequest) {
  Start([](const std::vector<TokenId>&, const SamplingParams&, int sample,
           int index) {
    return sample == 1 && index == 3 ? kNotFinite : Tok::Byte('a');
  });
  v1::GenerateRequest request = EndlessRequest();
  request.set_n(3);
  v1::GenerateResponse response;
  EXPECT_EQ(Generate(request, &response).error_code(), StatusCode::INTERNAL);
  EXPECT_TRUE(WaitUntilIdle());
}

TEST_F(InferenceServiceTest, FullQueueRefusesWithRetryInfo) {
  config_.max_waiting_requests = 1;
  auto engine = std::make_unique<FakeEngine>();
  engine->cache.max_num_seqs = 1;
  Start(std::move(engine));
  Stream running(*inference_, EndlessRequest());
  ASSERT_TRUE(running.ReadTokens(1));
  Stream waiting(*inference_, Request("x"));
  ASSERT_TRUE(waiting.Read());  // it has its place

  grpc::ClientContext context;
  v1::GenerateResponse response;
  const grpc::Status status =
      inference_->Generate(&context, Request("x"), &response);
  EXPECT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("queue is full"));
  // google.rpc.Status with details[0] = Any{RetryInfo{retry_delay {1 s}}}.
  const std::string type = "type.googleapis.com/google.rpc.RetryInfo";
  EXPECT_THAT(status.error_details(), HasSubstr(type));
  EXPECT_THAT(status.error_details(), HasSubstr("\x12\x04\x0a\x02\x08\x01"));
  // Nothing but trailers: the client may retry by itself.
  EXPECT_EQ(context.GetServerInitialMetadata().count("x-request-id"), 0u);
  EXPECT_EQ(context.GetServerTrailingMetadata().count("x-request-id"), 1u);

  running.Cancel();
  EXPECT_TRUE(waiting.Finish().ok());
}

TEST_F(InferenceServiceTest, WaitingTokensAreLimitedToo) {
  config_.max_waiting_tokens = 50;
  auto engine = std::make_unique<FakeEngine>();
  engine->cache.max_num_seqs = 1;
  Start(std::move(engine));
  Stream running(*inference_, EndlessRequest());
  ASSERT_TRUE(running.ReadTokens(1));
  Stream waiting(*inference_, Request(std::string(100, 'a')));  // about 26
  ASSERT_TRUE(waiting.Read());
  v1::GenerateResponse response;
  const grpc::Status status =
      Generate(Request(std::string(150, 'a')), &response);
  EXPECT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("max_waiting_tokens"));
  running.Cancel();
  EXPECT_TRUE(waiting.Finish().ok());
}

struct BadRequest {
  const char* name;
  std::function<void(v1::GenerateRequest&)> spoil;
  StatusCode code;
  const char* field;  // in the message
};

const float kNan = std::nanf("");
const float kInf = INFINITY;

std::vector<BadRequest> BadRequests() {
  using R = v1::GenerateRequest;
  constexpr StatusCode kInvalid = StatusCode::INVALID_ARGUMENT;
  constexpr StatusCode kRange = StatusCode::OUT_OF_RANGE;
  const auto sampling = [](R& r) { return r.mutable_sampling(); };
  const auto stop = [](R& r) { return r.mutable_stop(); };
  std::vector<BadRequest> rows = {
      {"no prompt", [](R& r) { r.clear_text(); }, kInvalid, "prompt"},
      {"no token ids", [](R& r) { r.mutable_tokens(); }, kInvalid,
       "tokens.ids"},
      {"negative token", [](R& r) { r.mutable_tokens()->add_ids(-1); },
       kInvalid, "tokens.ids[0]"},
      {"token past the vocabulary",
       [](R& r) {
         r.mutable_tokens()->add_ids(5);
         r.mutable_tokens()->add_ids(Tok::kVocabSize);
       },
       kInvalid, "tokens.ids[1]"},
      {"unknown model", [](R& r) { r.set_model("other"); },
       StatusCode::NOT_FOUND, "model"},
      {"temperature < 0", [=](R& r) { sampling(r)->set_temperature(-0.1f); },
       kInvalid, "sampling.temperature"},
      {"temperature > 100", [=](R& r) { sampling(r)->set_temperature(100.5f); },
       kInvalid, "sampling.temperature"},
      {"temperature NaN", [=](R& r) { sampling(r)->set_temperature(kNan); },
       kInvalid, "sampling.temperature"},
      {"temperature Inf", [=](R& r) { sampling(r)->set_temperature(kInf); },
       kInvalid, "sampling.temperature"},
      {"top_k < 0", [=](R& r) { sampling(r)->set_top_k(-1); }, kInvalid,
       "sampling.top_k"},
      {"top_p 0", [=](R& r) { sampling(r)->set_top_p(0); }, kInvalid,
       "sampling.top_p"},
      {"top_p < 0", [=](R& r) { sampling(r)->set_top_p(-0.5f); }, kInvalid,
       "sampling.top_p"},
      {"top_p > 1", [=](R& r) { sampling(r)->set_top_p(1.01f); }, kInvalid,
       "sampling.top_p"},
      {"top_p NaN", [=](R& r) { sampling(r)->set_top_p(kNan); }, kInvalid,
       "sampling.top_p"},
      {"min_p < 0", [=](R& r) { sampling(r)->set_min_p(-0.01f); }, kInvalid,
       "sampling.min_p"},
      {"min_p > 1", [=](R& r) { sampling(r)->set_min_p(1.5f); }, kInvalid,
       "sampling.min_p"},
      {"min_p NaN", [=](R& r) { sampling(r)->set_min_p(kNan); }, kInvalid,
       "sampling.min_p"},
      {"repetition_penalty 0",
       [=](R& r) { sampling(r)->set_repetition_penalty(0); }, kInvalid,
       "sampling.repetition_penalty"},
      {"repetition_penalty < 0",
       [=](R& r) { sampling(r)->set_repetition_penalty(-1); }, kInvalid,
       "sampling.repetition_penalty"},
      {"repetition_penalty > 100",
       [=](R& r) { sampling(r)->set_repetition_penalty(101); }, kInvalid,
       "sampling.repetition_penalty"},
      {"repetition_penalty NaN",
       [=](R& r) { sampling(r)->set_repetition_penalty(kNan); }, kInvalid,
       "sampling.repetition_penalty"},
      {"presence_penalty < -2",
       [=](R& r) { sampling(r)->set_presence_penalty(-2.1f); }, kInvalid,
       "sampling.presence_penalty"},
      {"presence_penalty > 2",
       [=](R& r) { sampling(r)->set_presence_penalty(2.1f); }, kInvalid,
       "sampling.presence_penalty"},
      {"presence_penalty NaN",
       [=](R& r) { sampling(r)->set_presence_penalty(kNan); }, kInvalid,
       "sampling.presence_penalty"},
      {"frequency_penalty < -2",
       [=](R& r) { sampling(r)->set_frequency_penalty(-3); }, kInvalid,
       "sampling.frequency_penalty"},
      {"frequency_penalty > 2",
       [=](R& r) { sampling(r)->set_frequency_penalty(3); }, kInvalid,
       "sampling.frequency_penalty"},
      {"frequency_penalty NaN",
       [=](R& r) { sampling(r)->set_frequency_penalty(kNan); }, kInvalid,
       "sampling.frequency_penalty"},
      {"max_tokens 0", [=](R& r) { stop(r)->set_max_tokens(0); }, kInvalid,
       "stop.max_tokens"},
      {"max_tokens < 0", [=](R& r) { stop(r)->set_max_tokens(-5); }, kInvalid,
       "stop.max_tokens"},
      {"max_tokens past the model", [=](R& r) { stop(r)->set_max_tokens(98); },
       kRange, "stop.max_tokens"},
      {"max_tokens far past the model",
       [=](R& r) { stop(r)->set_max_tokens(2147483647); }, kRange,
       "stop.max_tokens"},
      {"min_tokens < 0", [=](R& r) { stop(r)->set_min_tokens(-1); }, kInvalid,
       "stop.min_tokens"},
      {"min_tokens > max_tokens", [=](R& r) { stop(r)->set_min_tokens(9); },
       kInvalid, "stop.min_tokens"},
      {"17 stop strings",
       [=](R& r) {
         for (int i = 0; i < 17; ++i)
           stop(r)->add_stop_strings(std::string("s"));
       },
       kInvalid, "stop.stop_strings"},
      {"empty stop string",
       [=](R& r) {
         stop(r)->add_stop_strings(std::string("s"));
         stop(r)->add_stop_strings(std::string(""));
       },
       kInvalid, "stop.stop_strings[1]"},
      {"long stop string",
       [=](R& r) { stop(r)->add_stop_strings(std::string(257, 's')); },
       kInvalid, "stop.stop_strings[0]"},
      {"65 stop tokens",
       [=](R& r) {
         for (int i = 0; i < 65; ++i) stop(r)->add_stop_token_ids(i);
       },
       kInvalid, "stop.stop_token_ids"},
      {"negative stop token", [=](R& r) { stop(r)->add_stop_token_ids(-2); },
       kInvalid, "stop.stop_token_ids[0]"},
      {"stop token past the vocabulary",
       [=](R& r) { stop(r)->add_stop_token_ids(Tok::kVocabSize); }, kInvalid,
       "stop.stop_token_ids[0]"},
      {"n 0", [](R& r) { r.set_n(0); }, kInvalid, "n is 0"},
      {"n < 0", [](R& r) { r.set_n(-1); }, kInvalid, "n is -1"},
      {"n > 16", [](R& r) { r.set_n(17); }, kInvalid, "n is 17"},
      {"logprobs < 0", [](R& r) { r.set_logprobs(-1); }, kInvalid, "logprobs"},
      {"logprobs > 20", [](R& r) { r.set_logprobs(21); }, kInvalid, "logprobs"},
      {"prompt_logprobs < 0", [](R& r) { r.set_prompt_logprobs(-1); }, kInvalid,
       "prompt_logprobs"},
      {"prompt_logprobs > 20", [](R& r) { r.set_prompt_logprobs(21); },
       kInvalid, "prompt_logprobs"},
      {"time_limit_ms 0", [](R& r) { r.set_time_limit_ms(0); }, kInvalid,
       "time_limit_ms"},
      {"queue_time_limit_ms 0", [](R& r) { r.set_queue_time_limit_ms(0); },
       kInvalid, "queue_time_limit_ms"},
      {"first_token_time_limit_ms 0",
       [](R& r) { r.set_first_token_time_limit_ms(0); }, kInvalid,
       "first_token_time_limit_ms"},
      {"time_limit_ms < 0", [](R& r) { r.set_time_limit_ms(-1); }, kInvalid,
       "time_limit_ms"},
      {"prompt as long as the model",
       [](R& r) { r.set_text(std::string(98, 'a')); }, kRange, "prompt"},
      {"prompt ids as long as the model",
       [](R& r) {
         for (int i = 0; i < 100; ++i) r.mutable_tokens()->add_ids(5);
       },
       kRange, "prompt"},
      {"more bytes than any prompt has",
       [](R& r) { r.set_text(std::string(200'000, 'a')); }, kRange, "text"},
  };
  return rows;
}

TEST_F(InferenceServiceTest, BadRequestsAreRefusedAndTheFieldIsNamed) {
  auto engine = std::make_unique<FakeEngine>();
  engine->cache.max_model_len = 100;
  Start(std::move(engine));
  const std::vector<BadRequest> rows = BadRequests();
  EXPECT_GE(rows.size(), 40u);
  for (const BadRequest& row : rows) {
    SCOPED_TRACE(row.name);
    v1::GenerateRequest request = Request("x");
    row.spoil(request);
    v1::GenerateResponse response;
    const grpc::Status unary = Generate(request, &response);
    EXPECT_EQ(unary.error_code(), row.code) << unary.error_message();
    EXPECT_THAT(unary.error_message(), HasSubstr(row.field));
    Stream stream(*inference_, request);
    const grpc::Status streamed = stream.Finish();
    EXPECT_EQ(streamed.error_code(), row.code);
    EXPECT_EQ(streamed.error_message(), unary.error_message());
    EXPECT_TRUE(stream.messages().empty());
  }
  EXPECT_TRUE(WaitUntilIdle());
}

TEST_F(InferenceServiceTest, LimitsThemselvesAreAllowed) {
  auto engine = std::make_unique<FakeEngine>();
  engine->cache.max_model_len = 100;
  Start(std::move(engine));
  v1::GenerateRequest request = Request("x", 97);
  request.mutable_sampling()->set_temperature(100);
  request.mutable_sampling()->set_top_k(2147483647);
  request.mutable_sampling()->set_top_p(1);
  request.mutable_sampling()->set_min_p(1);
  request.mutable_sampling()->set_repetition_penalty(100);
  request.mutable_sampling()->set_presence_penalty(-2);
  request.mutable_sampling()->set_frequency_penalty(2);
  request.mutable_stop()->set_min_tokens(97);
  for (int i = 0; i < 16; ++i) {
    request.mutable_stop()->add_stop_strings(std::string(256, '~'));
  }
  for (int i = 0; i < 64; ++i) request.mutable_stop()->add_stop_token_ids(i);
  request.set_n(16);
  request.set_logprobs(20);
  request.set_prompt_logprobs(20);
  request.set_priority(-2147483647);
  request.set_time_limit_ms(9223372036854775807);
  request.set_model("fake");
  v1::GenerateResponse response;
  const grpc::Status status = Generate(request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.completions_size(), 16);
  EXPECT_EQ(response.usage().completion_tokens(), 16 * 97);
}

// --- The request's name ---

TEST_F(InferenceServiceTest, RequestIdComesBack) {
  Start();
  Stream named(*inference_, Request("x"), [](grpc::ClientContext& context) {
    context.AddMetadata("x-request-id", "order-66");
  });
  ASSERT_TRUE(named.Finish().ok());
  EXPECT_EQ(named.header("x-request-id"), "order-66");
  EXPECT_EQ(named.messages()[0].started().request_id(), "order-66");

  Stream first(*inference_, Request("x"));
  Stream second(*inference_, Request("x"));
  ASSERT_TRUE(first.Finish().ok());
  ASSERT_TRUE(second.Finish().ok());
  EXPECT_EQ(first.header("x-request-id"),
            first.messages()[0].started().request_id());
  EXPECT_NE(first.header("x-request-id"), "");
  EXPECT_NE(first.header("x-request-id"), second.header("x-request-id"));
}

TEST_F(InferenceServiceTest, TenantsComeFromMetadataAndHaveLimitsOfTheirOwn) {
  config_.max_waiting_requests_per_tenant = 1;
  auto engine = std::make_unique<FakeEngine>();
  engine->cache.max_num_seqs = 1;
  Start(std::move(engine));
  const auto of = [](const char* tenant) {
    return [tenant](grpc::ClientContext& context) {
      context.AddMetadata("x-tenant-id", tenant);
    };
  };
  Stream running(*inference_, EndlessRequest(), of("a"));
  ASSERT_TRUE(running.ReadTokens(1));
  Stream first(*inference_, Request("x"), of("a"));
  ASSERT_TRUE(first.Read());  // it has its place
  Stream second(*inference_, Request("x"), of("a"));
  const grpc::Status refused = second.Finish();
  EXPECT_EQ(refused.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(refused.error_message(), HasSubstr("of this tenant"));
  Stream other(*inference_, Request("x"), of("b"));
  ASSERT_TRUE(other.Read());
  Stream nameless(*inference_, Request("x"));
  ASSERT_TRUE(nameless.Read());
  running.Cancel();
  for (Stream* stream : {&first, &other, &nameless}) {
    EXPECT_TRUE(stream->Finish().ok());
  }

  Stream bad(*inference_, Request("x"), of("with space"));
  const grpc::Status invalid = bad.Finish();
  EXPECT_EQ(invalid.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(invalid.error_message(), HasSubstr("x-tenant-id"));
}

TEST_F(InferenceServiceTest, TenantsShareNoCachedPrefix) {
  Start();
  const auto cached = [this](const char* tenant) {
    Stream stream(*inference_, Request(std::string(100, 'p')),
                  [tenant](grpc::ClientContext& context) {
                    context.AddMetadata("x-tenant-id", tenant);
                  });
    EXPECT_TRUE(stream.Finish().ok());
    return stream.usage().cached_tokens();
  };
  EXPECT_EQ(cached("a"), 0);
  EXPECT_EQ(cached("b"), 0);
  EXPECT_EQ(cached("a"), 96);
}

TEST_F(InferenceServiceTest, RequestIdMustBePrintableAndShort) {
  Start();
  for (const std::string& id : {std::string(129, 'a'), std::string("a b")}) {
    grpc::ClientContext context;
    context.AddMetadata("x-request-id", id);
    v1::GenerateResponse response;
    const grpc::Status status =
        inference_->Generate(&context, Request("x"), &response);
    EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr("x-request-id"));
  }
}

// --- Tokenize, Detokenize ---

TEST_F(InferenceServiceTest, TokenizeGivesIdsAndPieces) {
  Start();
  v1::TokenizeRequest request;
  request.set_text("ab");
  v1::TokenizeResponse response;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(inference_->Tokenize(&context, request, &response).ok());
  }
  EXPECT_THAT(
      response.token_ids(),
      ElementsAre(Tok::kBos, Tok::Byte(' '), Tok::Byte('a'), Tok::Byte('b')));
  EXPECT_THAT(response.pieces(), ElementsAre("<s>", " ", "a", "b"));
  request.set_add_bos(false);
  grpc::ClientContext context;
  ASSERT_TRUE(inference_->Tokenize(&context, request, &response).ok());
  EXPECT_EQ(response.token_ids_size(), 3);
}

TEST_F(InferenceServiceTest, DetokenizeIsTheWayBack) {
  Start();
  v1::DetokenizeRequest request;
  for (const TokenId token : {Tok::kBos, Tok::kThe, Tok::Byte('x')}) {
    request.add_token_ids(token);
  }
  v1::DetokenizeResponse response;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(inference_->Detokenize(&context, request, &response).ok());
  }
  EXPECT_EQ(response.text(), "thex");
  request.set_keep_special(true);
  grpc::ClientContext context;
  ASSERT_TRUE(inference_->Detokenize(&context, request, &response).ok());
  EXPECT_EQ(response.text(), "<s>thex");
}

TEST_F(InferenceServiceTest, TokenizeAndDetokenizeNameWhatIsWrong) {
  Start();
  const auto tokenize = [&](const v1::TokenizeRequest& request) {
    grpc::ClientContext context;
    v1::TokenizeResponse response;
    return inference_->Tokenize(&context, request, &response);
  };
  const auto detokenize = [&](const v1::DetokenizeRequest& request) {
    grpc::ClientContext context;
    v1::DetokenizeResponse response;
    return inference_->Detokenize(&context, request, &response);
  };
  v1::TokenizeRequest text;
  text.set_model("other");
  EXPECT_EQ(tokenize(text).error_code(), StatusCode::NOT_FOUND);
  text.clear_model();
  text.set_text(std::string((1 << 20) + 1, 'a'));
  EXPECT_EQ(tokenize(text).error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(tokenize(text).error_message(), HasSubstr("text"));

  v1::DetokenizeRequest ids;
  ids.set_model("other");
  EXPECT_EQ(detokenize(ids).error_code(), StatusCode::NOT_FOUND);
  ids.clear_model();
  ids.add_token_ids(3);
  ids.add_token_ids(-1);
  EXPECT_EQ(detokenize(ids).error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(detokenize(ids).error_message(), HasSubstr("token_ids[1]"));
  ids.set_token_ids(1, Tok::kVocabSize);
  EXPECT_THAT(detokenize(ids).error_message(), HasSubstr("token_ids[1]"));
  ids.mutable_token_ids()->Resize((1 << 20) + 1, 5);
  EXPECT_THAT(detokenize(ids).error_message(), HasSubstr("token_ids"));
}

}  // namespace
}  // namespace binarymos
