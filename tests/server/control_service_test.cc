#include "server/version.h"
#include "tests/server/server_fixture.h"

namespace binarymos {
namespace {

using grpc::StatusCode;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsSupersetOf;
using Tok = FakeTokenizer;

class ControlServiceTest : public ServerFixture {};

TEST_F(ControlServiceTest, ServerInfoTellsWhatRuns) {
  Start();
  grpc::ClientContext context;
  v1::GetServerInfoResponse info;
  ASSERT_TRUE(control_->GetServerInfo(&context, {}, &info).ok());
  EXPECT_EQ(info.version(), Version());
  EXPECT_EQ(info.git_commit(), GitCommit());
  EXPECT_EQ(info.compiler(), Compiler());
  EXPECT_GT(info.uptime_seconds(), 0);
  EXPECT_FALSE(info.draining());
  EXPECT_THAT(info.services(),
              IsSupersetOf({"binarymos.v1.Inference", "binarymos.v1.Control",
                            "grpc.health.v1.Health"}));
  EXPECT_THAT(VersionLine(), HasSubstr(Version()));
}

TEST_F(ControlServiceTest, ModelsAreListedByTheirServedName) {
  config_.served_model_name = "tales";
  Start();
  grpc::ClientContext context;
  v1::ListModelsResponse models;
  ASSERT_TRUE(control_->ListModels(&context, {}, &models).ok());
  EXPECT_THAT(models.models(), ElementsAre("tales"));
}

TEST_F(ControlServiceTest, ModelInfoTellsFactsOfTheEngine) {
  auto engine = std::make_unique<FakeEngine>();
  engine->cache.num_blocks = 10;
  Start(std::move(engine));
  const auto get = [&](const std::string& name, v1::ModelInfo* info) {
    grpc::ClientContext context;
    v1::GetModelInfoRequest request;
    request.set_model(name);
    return control_->GetModelInfo(&context, request, info);
  };
  v1::ModelInfo info;
  ASSERT_TRUE(get("", &info).ok());
  EXPECT_EQ(info.name(), "fake");
  EXPECT_EQ(info.quant_method(), "binarymos");
  EXPECT_EQ(info.num_experts(), 4);
  EXPECT_EQ(info.vocab_size(), Tok::kVocabSize);
  EXPECT_EQ(info.bits_per_weight(), 1.25);
  EXPECT_EQ(info.kv_cache_dtype(), "fp8_e4m3");
  EXPECT_EQ(info.kv_capacity_tokens(), 160);
  EXPECT_EQ(info.max_model_len(), 160);  // what the cache can hold
  EXPECT_THAT(info.eos_token_ids(), ElementsAre(Tok::kEos));
  EXPECT_EQ(info.bos_token_id(), Tok::kBos);
  ASSERT_TRUE(get("fake", &info).ok());
  const grpc::Status unknown = get("other", &info);
  EXPECT_EQ(unknown.error_code(), StatusCode::NOT_FOUND);
  EXPECT_THAT(unknown.error_message(), HasSubstr("fake"));

  // The whole cache can be used, and no more.
  v1::GenerateResponse response;
  EXPECT_TRUE(Generate(Request("ab", 156), &response).ok());
  EXPECT_EQ(Generate(Request("ab", 157), &response).error_code(),
            StatusCode::OUT_OF_RANGE);
}

TEST_F(ControlServiceTest, LoadCountsWhatRunsAndWaits) {
  config_.max_waiting_requests = 7;
  auto engine = std::make_unique<FakeEngine>();
  engine->cache.max_num_seqs = 2;
  Start(std::move(engine));
  v1::GetLoadResponse idle = Load();
  EXPECT_EQ(idle.num_running(), 0);
  EXPECT_EQ(idle.max_running(), 2);
  EXPECT_EQ(idle.max_waiting(), 7);
  EXPECT_EQ(idle.kv_cache_usage(), 0);
  EXPECT_EQ(idle.kv_capacity_tokens(), int64_t{16} << 16);

  v1::GenerateRequest request = EndlessRequest();
  request.set_n(2);
  Stream running(*inference_, request);
  ASSERT_TRUE(running.ReadTokens(1, 1));
  Stream waiting(*inference_, Request("x"));
  ASSERT_TRUE(waiting.Read());
  const v1::GetLoadResponse busy = Load();
  EXPECT_EQ(busy.num_running(), 2);
  EXPECT_EQ(busy.num_waiting(), 1);
  EXPECT_GT(busy.kv_used_tokens(), 0);
  EXPECT_GT(busy.kv_cache_usage(), 0);
  EXPECT_GT(busy.num_generated_tokens(), 0);
  EXPECT_GE(busy.num_prompt_tokens(), 4);
  running.Cancel();
  EXPECT_TRUE(waiting.Finish().ok());
}

TEST_F(ControlServiceTest, FlushForgetsCachedPrefixes) {
  Start();
  const std::string prompt(100, 'a');
  v1::GenerateResponse response;
  ASSERT_TRUE(Generate(Request(prompt), &response).ok());
  EXPECT_EQ(response.usage().cached_tokens(), 0);
  ASSERT_TRUE(Generate(Request(prompt), &response).ok());
  EXPECT_EQ(response.usage().cached_tokens(), 96);
  {
    grpc::ClientContext context;
    v1::FlushPrefixCacheResponse flushed;
    ASSERT_TRUE(control_->FlushPrefixCache(&context, {}, &flushed).ok());
  }
  ASSERT_TRUE(Generate(Request(prompt), &response).ok());
  EXPECT_EQ(response.usage().cached_tokens(), 0);
}

TEST_F(ControlServiceTest, UnknownModelsAreNotFoundEverywhere) {
  Start();
  v1::GetLoadRequest load;
  load.set_model("other");
  v1::GetLoadResponse load_response;
  grpc::ClientContext load_context;
  EXPECT_EQ(control_->GetLoad(&load_context, load, &load_response).error_code(),
            StatusCode::NOT_FOUND);
  v1::FlushPrefixCacheRequest flush;
  flush.set_model("other");
  v1::FlushPrefixCacheResponse flush_response;
  grpc::ClientContext flush_context;
  EXPECT_EQ(control_->FlushPrefixCache(&flush_context, flush, &flush_response)
                .error_code(),
            StatusCode::NOT_FOUND);
}

}  // namespace
}  // namespace binarymos
