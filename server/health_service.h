// What grpc.health.v1.Health says.
#pragma once

#include <grpcpp/health_check_service_interface.h>

#include <optional>

#include "engine/api/types.h"
#include "scheduler/loop_status.h"

namespace binarymos {

// Decides two facts and tells gRPC's own health service (Check and Watch) when
// they change:
//   "liveness"   the process works, or is still loading; false calls for a
//                restart
//   "readiness"  it takes requests: loaded, warm, alive, not draining; so do ""
//                and the services binarymos.v1.Inference and .Control
// Confined to one thread at a time.
class HealthService {
 public:
  // `health` outlives this object. Begins as alive and not ready.
  explicit HealthService(grpc::HealthCheckServiceInterface* health);

  // The model is loaded; from now on its loop decides. `loop` outlives this
  // object.
  void SetLoaded(const LoopStatus* loop);
  void SetDraining();
  // Looks at the loop. Call after each of the above, and now and then.
  void Update(MonotonicTime now);

  bool ready() const { return *ready_; }
  bool alive() const { return *alive_; }

 private:
  void Publish(bool alive, bool ready);

  grpc::HealthCheckServiceInterface* const health_;
  const LoopStatus* loop_ = nullptr;
  bool draining_ = false;
  std::optional<bool> alive_;  // what gRPC was told
  std::optional<bool> ready_;
};

}  // namespace binarymos
