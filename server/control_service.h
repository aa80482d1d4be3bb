// binarymos.v1.Control.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "binarymos/v1/control.grpc.pb.h"
#include "engine/api/types.h"
#include "server/generation_service.h"
#include "server/model_registry.h"

namespace binarymos {

// Every call answers at once, from snapshots. What it refers to outlives it.
class ControlService final : public v1::Control::CallbackService {
 public:
  struct Options {
    MonotonicTime start_time;
    std::vector<std::string> services;  // fully qualified names
    std::function<bool()> draining;
    std::function<void()> drain;  // returns at once
  };

  ControlService(Options options, const ModelRegistry* registry,
                 GenerationService* generation);

  grpc::ServerUnaryReactor* GetServerInfo(
      grpc::CallbackServerContext* rpc, const v1::GetServerInfoRequest* request,
      v1::GetServerInfoResponse* response) override;
  grpc::ServerUnaryReactor* ListModels(
      grpc::CallbackServerContext* rpc, const v1::ListModelsRequest* request,
      v1::ListModelsResponse* response) override;
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* rpc,
                                         const v1::GetModelInfoRequest* request,
                                         v1::ModelInfo* response) override;
  grpc::ServerUnaryReactor* GetLoad(grpc::CallbackServerContext* rpc,
                                    const v1::GetLoadRequest* request,
                                    v1::GetLoadResponse* response) override;
  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* rpc,
                                  const v1::AbortRequest* request,
                                  v1::AbortResponse* response) override;
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* rpc,
                                  const v1::DrainRequest* request,
                                  v1::DrainResponse* response) override;
  grpc::ServerUnaryReactor* FlushPrefixCache(
      grpc::CallbackServerContext* rpc,
      const v1::FlushPrefixCacheRequest* request,
      v1::FlushPrefixCacheResponse* response) override;

 private:
  const Options options_;
  const ModelRegistry* const registry_;
  GenerationService* const generation_;
};

}  // namespace binarymos
