// A bidirectional call by method name, in bytes: for services whose generated
// code the distribution does not have.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace binarymos {

class RawCall {
 public:
  RawCall(const std::shared_ptr<grpc::Channel>& channel,
          const std::string& method)
      : stub_(channel), call_(stub_.PrepareCall(&context_, method, &queue_)) {
    call_->StartCall(this);
    Next();
  }
  ~RawCall() {
    context_.TryCancel();
    if (!finished_) Finish();
    queue_.Shutdown();
    void* tag = nullptr;
    bool ok = false;
    while (queue_.Next(&tag, &ok)) {
    }
  }

  // Sends the only message.
  void Send(const std::string& bytes) {
    const grpc::Slice slice(bytes);
    call_->WriteLast(grpc::ByteBuffer(&slice, 1), grpc::WriteOptions(), this);
    Next();
  }

  // Nothing once the call has ended.
  std::optional<std::string> Read() {
    grpc::ByteBuffer message;
    call_->Read(&message, this);
    if (!Next()) return std::nullopt;
    std::vector<grpc::Slice> slices;
    if (!message.Dump(&slices).ok()) return std::nullopt;
    std::string bytes;
    for (const grpc::Slice& slice : slices) {
      bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    }
    return bytes;
  }

  grpc::Status Finish() {
    finished_ = true;
    grpc::Status status;
    call_->Finish(&status, this);
    Next();
    return status;
  }

 private:
  bool Next() {
    void* tag = nullptr;
    bool ok = false;
    return queue_.Next(&tag, &ok) && ok;
  }

  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  grpc::GenericStub stub_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
  bool finished_ = false;
};

// --- grpc.health.v1.Health ---

enum class Health { kUnknown = 0, kServing, kNotServing, kServiceUnknown };

inline std::string HealthRequest(const std::string& service) {
  if (service.empty()) return "";
  return std::string("\x0a") + static_cast<char>(service.size()) + service;
}

inline Health ParseHealth(const std::string& bytes) {
  return bytes.size() == 2 ? static_cast<Health>(bytes[1]) : Health::kUnknown;
}

// Health::Check; the status of the call if that fails.
inline std::pair<grpc::Status, Health> CheckHealth(
    const std::shared_ptr<grpc::Channel>& channel, const std::string& service) {
  RawCall call(channel, "/grpc.health.v1.Health/Check");
  call.Send(HealthRequest(service));
  const std::optional<std::string> answer = call.Read();
  return {call.Finish(), answer ? ParseHealth(*answer) : Health::kUnknown};
}

// Health::Watch.
class HealthWatch {
 public:
  HealthWatch(const std::shared_ptr<grpc::Channel>& channel,
              const std::string& service)
      : call_(channel, "/grpc.health.v1.Health/Watch") {
    call_.Send(HealthRequest(service));
  }
  // Waits for the next change; nothing once the server has gone.
  std::optional<Health> Next() {
    const std::optional<std::string> answer = call_.Read();
    return answer ? std::make_optional(ParseHealth(*answer)) : std::nullopt;
  }

 private:
  RawCall call_;
};

}  // namespace binarymos
