// A server on a free port around a fake engine, and a client.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "binarymos/v1/control.grpc.pb.h"
#include "binarymos/v1/inference.grpc.pb.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/server.h"
#include "tests/server/fake_engine.h"

namespace binarymos {

inline std::shared_ptr<grpc::Channel> Connect(int port) {
  // Each its own connection.
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetMaxReceiveMessageSize(-1);
  return grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", port),
                                   grpc::InsecureChannelCredentials(),
                                   arguments);
}

class ServerFixture : public ::testing::Test {
 protected:
  ServerFixture() {
    config_.engine.model_dir = "models/fake";
    config_.grpc_port = 0;
    config_.http_port = -1;
  }

  ~ServerFixture() override {
    if (engine_ != nullptr) engine_->runner().gate.Open();
  }

  void Start(TokenScript script = Letters) {
    Start(std::make_unique<FakeEngine>(std::move(script)));
  }
  void Start(std::unique_ptr<FakeEngine> engine) {
    engine_ = engine.get();
    auto server = Server::StartWithEngine(config_, std::move(engine));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    channel_ = Connect(server_->grpc_port());
    inference_ = v1::Inference::NewStub(channel_);
    control_ = v1::Control::NewStub(channel_);
  }

  StepGate& gate() { return engine_->runner().gate; }

  static v1::GenerateRequest Request(const std::string& text,
                                     int max_tokens = 8) {
    v1::GenerateRequest request;
    request.set_text(text);
    request.mutable_stop()->set_max_tokens(max_tokens);
    request.mutable_sampling()->set_seed(1);
    return request;
  }

  // A request that goes on until somebody ends it.
  static v1::GenerateRequest EndlessRequest() {
    return Request("go", (1 << 20) - 100);
  }

  grpc::Status Generate(const v1::GenerateRequest& request,
                        v1::GenerateResponse* response) {
    grpc::ClientContext context;
    return inference_->Generate(&context, request, response);
  }

  v1::GetLoadResponse Load() {
    grpc::ClientContext context;
    v1::GetLoadResponse response;
    const grpc::Status status = control_->GetLoad(&context, {}, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }

  // Asks the server about its load until `done`: for what happens by itself,
  // soon. Each question is a round trip.
  bool WaitForLoad(
      const std::function<bool(const v1::GetLoadResponse&)>& done) {
    const auto deadline =
        std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (std::chrono::steady_clock::now() < deadline) {
      if (done(Load())) return true;
    }
    return false;
  }
  bool WaitUntilIdle() {
    return WaitForLoad([](const v1::GetLoadResponse& load) {
      return load.num_running() == 0 && load.num_waiting() == 0 &&
             load.kv_used_tokens() == 0;
    });
  }

  ServerConfig config_;
  FakeEngine* engine_ = nullptr;  // of server_
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> inference_;
  std::unique_ptr<v1::Control::Stub> control_;
};

// A stream, and all that has come of it.
class Stream {
 public:
  Stream(v1::Inference::Stub& stub, const v1::GenerateRequest& request)
      : reader_(stub.GenerateStream(&context_, request)) {}
  // With metadata or a deadline.
  Stream(v1::Inference::Stub& stub, const v1::GenerateRequest& request,
         const std::function<void(grpc::ClientContext&)>& prepare)
      : reader_((prepare(context_), stub.GenerateStream(&context_, request))) {}

  bool Read() {
    v1::GenerateStreamResponse message;
    if (!reader_->Read(&message)) return false;
    messages_.push_back(std::move(message));
    return true;
  }

  // Until `sample` has `n` tokens; false if the stream ends before.
  bool ReadTokens(int n, int sample = 0) {
    while (static_cast<int>(token_ids(sample).size()) < n) {
      if (!Read()) return false;
    }
    return true;
  }

  grpc::Status Finish() {
    while (Read()) {
    }
    return reader_->Finish();
  }

  void Cancel() { context_.TryCancel(); }

  const std::vector<v1::GenerateStreamResponse>& messages() const {
    return messages_;
  }

  std::string text(int sample = 0) const {
    std::string text;
    ForEachDelta(sample, [&](const v1::Delta& delta) { text += delta.text(); });
    return text;
  }
  std::vector<int> token_ids(int sample = 0) const {
    std::vector<int> ids;
    ForEachDelta(sample, [&](const v1::Delta& delta) {
      ids.insert(ids.end(), delta.token_ids().begin(), delta.token_ids().end());
    });
    return ids;
  }
  std::optional<v1::Delta> last_delta(int sample = 0) const {
    std::optional<v1::Delta> last;
    ForEachDelta(sample, [&](const v1::Delta& delta) { last = delta; });
    return last;
  }
  v1::Usage usage() const { return messages_.back().ended().usage(); }

  std::string header(const std::string& key) const {
    const auto& metadata = context_.GetServerInitialMetadata();
    const auto it = metadata.find(key);
    return it == metadata.end()
               ? ""
               : std::string(it->second.data(), it->second.size());
  }

 private:
  void ForEachDelta(int sample,
                    const std::function<void(const v1::Delta&)>& use) const {
    for (const v1::GenerateStreamResponse& message : messages_) {
      for (const v1::Delta& delta : message.deltas()) {
        if (delta.index() == sample) use(delta);
      }
    }
  }

  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::GenerateStreamResponse>> reader_;
  std::vector<v1::GenerateStreamResponse> messages_;
};

}  // namespace binarymos
