// One Generate or GenerateStream call: translates, writes, cancels.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <cstddef>

#include "binarymos/v1/inference.pb.h"
#include "engine/api/types.h"
#include "server/generation_service.h"
#include "server/open_calls.h"

namespace binarymos {

// What calls need of the server; all of it outlives them.
struct CallContext {
  GenerationService* service = nullptr;
  OpenCalls* open_calls = nullptr;
  size_t stream_buffer_bytes = 0;   // output that one stream may hold back
  Duration write_stall_timeout{0};  // of one write; 0: no limit
};

// Begin a call. The reactor owns itself and goes when the call is done.
// `request` and `response` live until the call is finished.
grpc::ServerUnaryReactor* StartGenerate(const CallContext& context,
                                        grpc::CallbackServerContext* rpc,
                                        const v1::GenerateRequest& request,
                                        v1::GenerateResponse* response);
grpc::ServerWriteReactor<v1::GenerateStreamResponse>* StartGenerateStream(
    const CallContext& context, grpc::CallbackServerContext* rpc,
    const v1::GenerateRequest& request);

}  // namespace binarymos
