#include "server/health_service.h"

namespace binarymos {
namespace {

constexpr char kLiveness[] = "liveness";
constexpr const char* kReadyNames[] = {
    "", "readiness", "binarymos.v1.Inference", "binarymos.v1.Control"};

}  // namespace

HealthService::HealthService(grpc::HealthCheckServiceInterface* health)
    : health_(health) {
  Publish(/*alive=*/true, /*ready=*/false);
}

void HealthService::SetLoaded(const LoopStatus* loop) { loop_ = loop; }

void HealthService::SetDraining() { draining_ = true; }

void HealthService::Update(MonotonicTime now) {
  const bool alive = loop_ == nullptr || loop_->IsAlive(now);
  Publish(alive, alive && loop_ != nullptr && !draining_);
}

void HealthService::Publish(bool alive, bool ready) {
  if (ready_ != ready) {
    for (const char* name : kReadyNames) health_->SetServingStatus(name, ready);
  }
  if (alive_ != alive) health_->SetServingStatus(kLiveness, alive);
  alive_ = alive;
  ready_ = ready;
}

}  // namespace binarymos
