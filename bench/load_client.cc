#include "bench/load_client.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "binarymos/v1/control.grpc.pb.h"
#include "binarymos/v1/inference.grpc.pb.h"

namespace binarymos {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      status.error_message());
}

// What one client saw.
struct StreamResult {
  absl::Status status;
  RunResult run;
};

v1::GenerateRequest MakeRequest(const Workload& workload, int stream,
                                int vocab_size) {
  v1::GenerateRequest request;
  for (const TokenId token : PromptTokens(workload, stream, vocab_size)) {
    request.mutable_tokens()->add_ids(token);
  }
  request.mutable_sampling()->set_temperature(0);
  request.mutable_stop()->set_max_tokens(workload.output_tokens);
  request.mutable_stop()->set_ignore_eos(true);
  return request;
}

StreamResult RunStream(v1::Inference::Stub& stub,
                       const v1::GenerateRequest& request,
                       int expected_tokens) {
  StreamResult result;
  grpc::ClientContext context;
  const Clock::time_point start = Clock::now();
  Clock::time_point last = start;
  auto reader = stub.GenerateStream(&context, request);
  v1::GenerateStreamResponse response;
  while (reader->Read(&response)) {
    int num_tokens = 0;
    for (const v1::Delta& delta : response.deltas()) {
      num_tokens += delta.token_ids_size();
    }
    if (num_tokens == 0) continue;
    std::vector<double>& intervals = result.run.num_tokens == 0
                                         ? result.run.ttft_seconds
                                         : result.run.itl_seconds;
    intervals.push_back(SecondsSince(last));
    last = Clock::now();
    result.run.num_tokens += num_tokens;
  }
  result.status = FromGrpc(reader->Finish());
  if (result.status.ok() && result.run.num_tokens != expected_tokens) {
    result.status = absl::InternalError(
        absl::StrCat("a stream ended after ", result.run.num_tokens,
                     " tokens instead of ", expected_tokens));
  }
  return result;
}

absl::StatusOr<int> VocabSize(const std::shared_ptr<grpc::Channel>& channel) {
  auto stub = v1::Control::NewStub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::seconds(30));
  context.set_wait_for_ready(true);
  v1::ModelInfo info;
  const grpc::Status status = stub->GetModelInfo(&context, {}, &info);
  if (!status.ok()) return FromGrpc(status);
  return info.vocab_size();
}

}  // namespace

absl::StatusOr<RunResult> RunOnServer(const std::string& target,
                                      const Workload& workload) {
  const auto channel =
      grpc::CreateChannel(target, grpc::InsecureChannelCredentials());
  absl::StatusOr<int> vocab_size = VocabSize(channel);
  if (!vocab_size.ok()) return vocab_size.status();
  const auto stub = v1::Inference::NewStub(channel);

  std::vector<v1::GenerateRequest> requests;
  for (int i = 0; i < workload.streams; ++i) {
    requests.push_back(MakeRequest(workload, i, *vocab_size));
  }
  std::vector<StreamResult> results(workload.streams);
  std::vector<std::thread> threads;
  const Clock::time_point start = Clock::now();
  for (int i = 0; i < workload.streams; ++i) {
    threads.emplace_back([&, i] {
      results[i] = RunStream(*stub, requests[i], workload.output_tokens);
    });
  }
  for (std::thread& thread : threads) thread.join();

  RunResult total;
  total.wall_seconds = SecondsSince(start);
  for (StreamResult& result : results) {
    if (!result.status.ok()) return result.status;
    total.num_tokens += result.run.num_tokens;
    total.ttft_seconds.insert(total.ttft_seconds.end(),
                              result.run.ttft_seconds.begin(),
                              result.run.ttft_seconds.end());
    total.itl_seconds.insert(total.itl_seconds.end(),
                             result.run.itl_seconds.begin(),
                             result.run.itl_seconds.end());
  }
  return total;
}

}  // namespace binarymos
