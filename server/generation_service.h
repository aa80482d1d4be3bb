// The one path from a request to its tokens, for every face.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/core/mutex.h"
#include "server/generation.h"
#include "server/generation_request.h"
#include "server/metrics.h"
#include "server/model_registry.h"
#include "server/text_executor.h"

namespace binarymos {

// The key of absl::Status::GetPayload under which a refusal that may be retried
// holds a serialized google.rpc.RetryInfo.
inline constexpr char kRetryInfoType[] =
    "type.googleapis.com/google.rpc.RetryInfo";

// A name in metadata `key`, of a request or a tenant: 1 to 128 printable ASCII
// characters, no spaces. INVALID_ARGUMENT otherwise.
absl::Status ValidateName(const char* key, const std::string& name);

// Thread-safe.
class GenerationService {
 public:
  struct Options {
    int default_max_tokens = 256;
  };

  // Registry and executor outlive this object; before it goes, every request
  // must have ended.
  GenerationService(Options options, const ModelRegistry* registry,
                    TextExecutor* executor);
  ~GenerationService();

  // From now on counts requests in `metrics`, which outlives this object.
  void SetMetrics(Metrics* metrics) { metrics_ = metrics; }

  // A name for a request whose client gave none.
  std::string NewRequestId();

  // Validates the request, takes a place in the queue, and returns; the sink
  // hears of the rest. On error the sink is not called:
  //   INVALID_ARGUMENT    a field; the message begins with its name
  //   NOT_FOUND           no such model
  //   OUT_OF_RANGE        the prompt is longer than the model
  //   RESOURCE_EXHAUSTED  the queue is full, or too slow; carries
  //                       kRetryInfoType
  //   UNAVAILABLE         loading or shutting down
  //   DEADLINE_EXCEEDED   it arrived too late, or would wait too long
  absl::StatusOr<std::shared_ptr<Generation>> Start(GenerationRequest request,
                                                    CallInfo call,
                                                    GenerationSink* sink);

  // Ends the requests of these names with CANCELLED; returns how many there
  // were. Several requests may have one name.
  int Abort(const std::vector<std::string>& request_ids);

  // Ends every request with `status`.
  void CancelAll(const absl::Status& status);

  int num_active() const;

 private:
  absl::StatusOr<std::shared_ptr<Generation>> TryStart(
      GenerationRequest& request, CallInfo& call, GenerationSink* sink,
      const char*& refusal_reason);
  void Remove(RequestId id);
  std::vector<std::shared_ptr<Generation>> Active() const;

  const Options options_;
  const ModelRegistry* const registry_;
  TextExecutor* const executor_;
  const std::string id_prefix_;  // differs between processes
  std::atomic<Metrics*> metrics_{nullptr};
  std::atomic<RequestId> next_id_{1};
  std::atomic<uint64_t> num_names_{0};

  mutable Mutex mutex_;
  // Requests that have not ended. Keeps them alive.
  absl::flat_hash_map<RequestId, std::shared_ptr<Generation>> active_
      ABSL_GUARDED_BY(mutex_);
};

}  // namespace binarymos
