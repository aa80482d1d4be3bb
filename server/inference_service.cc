#include "server/inference_service.h"

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "server/generation_request.h"
#include "server/grpc_status.h"

namespace binarymos {
namespace {

// What one call may ask of a text thread, so that streams do not wait for long.
constexpr size_t kMaxTokenizeBytes = 1 << 20;
constexpr int kMaxDetokenizeTokens = 1 << 20;

absl::Status Tokenize(const Tokenizer& tokenizer,
                      const v1::TokenizeRequest& request,
                      v1::TokenizeResponse& response) {
  if (request.text().size() > kMaxTokenizeBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("text has ", request.text().size(), " bytes; at most ",
                     kMaxTokenizeBytes, " are allowed in one call"));
  }
  const bool add_bos = !request.has_add_bos() || request.add_bos();
  const absl::StatusOr<std::vector<TokenId>> tokens =
      tokenizer.Encode(request.text(), add_bos);
  if (!tokens.ok()) {
    return absl::Status(tokens.status().code(),
                        absl::StrCat("text: ", tokens.status().message()));
  }
  response.mutable_token_ids()->Add(tokens->begin(), tokens->end());
  for (const TokenId token : *tokens) {
    response.add_pieces(tokenizer.Piece(token, /*keep_special=*/true));
  }
  return absl::OkStatus();
}

absl::Status Detokenize(const Tokenizer& tokenizer,
                        const v1::DetokenizeRequest& request,
                        v1::DetokenizeResponse& response) {
  if (request.token_ids_size() > kMaxDetokenizeTokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "token_ids has ", request.token_ids_size(), " entries; at most ",
        kMaxDetokenizeTokens, " are allowed in one call"));
  }
  const std::vector<TokenId> tokens(request.token_ids().begin(),
                                    request.token_ids().end());
  absl::Status status =
      ValidateTokenIds(tokens, tokenizer.vocab_size(), "token_ids");
  if (!status.ok()) return status;
  response.set_text(tokenizer.Decode(tokens, request.keep_special()));
  return absl::OkStatus();
}

// Runs `work(tokenizer, *request, *response)` on a text thread and answers.
template <typename Request, typename Response, typename Work>
grpc::ServerUnaryReactor* OnTextThread(
    TextExecutor& executor, const absl::StatusOr<ServedModel*>& model,
    grpc::CallbackServerContext* rpc, const Request* request,
    Response* response, Work work) {
  grpc::ServerUnaryReactor* const reactor = rpc->DefaultReactor();
  if (!model.ok()) {
    reactor->Finish(ToGrpcStatus(model.status()));
    return reactor;
  }
  const Tokenizer& tokenizer = (*model)->tokenizer();
  executor.Post([&tokenizer, reactor, request, response, work] {
    reactor->Finish(ToGrpcStatus(work(tokenizer, *request, *response)));
  });
  return reactor;
}

}  // namespace

grpc::ServerUnaryReactor* InferenceService::Generate(
    grpc::CallbackServerContext* rpc, const v1::GenerateRequest* request,
    v1::GenerateResponse* response) {
  return StartGenerate(context_, rpc, *request, response);
}

grpc::ServerWriteReactor<v1::GenerateStreamResponse>*
InferenceService::GenerateStream(grpc::CallbackServerContext* rpc,
                                 const v1::GenerateRequest* request) {
  return StartGenerateStream(context_, rpc, *request);
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(
    grpc::CallbackServerContext* rpc, const v1::TokenizeRequest* request,
    v1::TokenizeResponse* response) {
  return OnTextThread(*executor_, registry_->Find(request->model()), rpc,
                      request, response, &binarymos::Tokenize);
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(
    grpc::CallbackServerContext* rpc, const v1::DetokenizeRequest* request,
    v1::DetokenizeResponse* response) {
  return OnTextThread(*executor_, registry_->Find(request->model()), rpc,
                      request, response, &binarymos::Detokenize);
}

}  // namespace binarymos
