// binarymos.v1.Inference.
#pragma once

#include <memory>

#include "binarymos/v1/inference.grpc.pb.h"
#include "server/generate_reactor.h"
#include "server/model_registry.h"
#include "server/text_executor.h"

namespace binarymos {

// Nothing in it blocks. What it refers to outlives it.
class InferenceService final : public v1::Inference::CallbackService {
 public:
  InferenceService(const CallContext& context, const ModelRegistry* registry,
                   TextExecutor* executor)
      : context_(context), registry_(registry), executor_(executor) {}

  grpc::ServerUnaryReactor* Generate(grpc::CallbackServerContext* rpc,
                                     const v1::GenerateRequest* request,
                                     v1::GenerateResponse* response) override;
  grpc::ServerWriteReactor<v1::GenerateStreamResponse>* GenerateStream(
      grpc::CallbackServerContext* rpc,
      const v1::GenerateRequest* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* rpc,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(
      grpc::CallbackServerContext* rpc, const v1::DetokenizeRequest* request,
      v1::DetokenizeResponse* response) override;

 private:
  const CallContext context_;
  const ModelRegistry* const registry_;
  TextExecutor* const executor_;
};

}  // namespace binarymos
