#include "server/generation_service.h"

#include <google/protobuf/duration.pb.h>
#include <sys/random.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "engine/core/check.h"
#include "server/logging.h"

namespace binarymos {
namespace {

constexpr size_t kMaxNameBytes = 128;
constexpr std::chrono::milliseconds kMaxTimeLimit =
    std::chrono::hours(24 * 365);

// Bounds of what a client is told, and what it is told when nothing is known.
constexpr Duration kSoonestRetry = std::chrono::milliseconds(100);
constexpr Duration kLatestRetry = std::chrono::seconds(60);
constexpr Duration kRetryByDefault = std::chrono::seconds(1);

// google.rpc.RetryInfo{google.protobuf.Duration retry_delay = 1}, whose .proto
// the distribution does not have.
std::string RetryInfo(Duration retry_after) {
  const Duration delay =
      retry_after == Duration(0)
          ? kRetryByDefault
          : std::clamp(retry_after, kSoonestRetry, kLatestRetry);
  const auto seconds = std::chrono::floor<std::chrono::seconds>(delay);
  google::protobuf::Duration message;
  message.set_seconds(seconds.count());
  message.set_nanos(static_cast<int32_t>((delay - seconds).count()));
  const std::string bytes = message.SerializeAsString();
  constexpr char kTag = (1 << 3) | 2;
  return std::string{kTag, static_cast<char>(bytes.size())} + bytes;
}

// As a label of metrics.
const char* NameOf(QueueRefusal::Reason reason) {
  switch (reason) {
    case QueueRefusal::Reason::kClosed:
      return "draining";
    case QueueRefusal::Reason::kRequests:
      return "queue_full";
    case QueueRefusal::Reason::kTokens:
      return "queue_tokens";
    case QueueRefusal::Reason::kTenantRequests:
      return "tenant_full";
    case QueueRefusal::Reason::kTenantTokens:
      return "tenant_tokens";
    case QueueRefusal::Reason::kEstimatedWait:
      return "estimated_wait";
    case QueueRefusal::Reason::kDeadline:
      break;
  }
  return "deadline";
}

uint64_t RandomSeed() {
  uint64_t seed = 0;
  BINARYMOS_CHECK_EQ(getrandom(&seed, sizeof(seed), 0),
                     static_cast<ssize_t>(sizeof(seed)));
  return seed;
}

std::optional<MonotonicTime> After(MonotonicTime arrival,
                                   std::optional<int64_t> limit_ms) {
  if (!limit_ms) return std::nullopt;
  return arrival +
         std::min(std::chrono::milliseconds(*limit_ms), kMaxTimeLimit);
}

std::optional<MonotonicTime> Earlier(std::optional<MonotonicTime> a,
                                     std::optional<MonotonicTime> b) {
  if (!a || !b) return a ? a : b;
  return std::min(*a, *b);
}

TimeLimits LimitsOf(const GenerationRequest& request, const CallInfo& call) {
  TimeLimits limits;
  limits.queue = After(call.arrival, request.queue_time_limit_ms);
  limits.first_token = After(call.arrival, request.first_token_time_limit_ms);
  limits.total =
      Earlier(call.deadline, After(call.arrival, request.time_limit_ms));
  return limits;
}

absl::Status ValidateForModel(const GenerationRequest& request,
                              const ServedModel& model) {
  const int vocab_size = model.tokenizer().vocab_size();
  if (const auto* ids = std::get_if<std::vector<TokenId>>(&request.prompt)) {
    absl::Status status = ValidateTokenIds(*ids, vocab_size, "tokens.ids");
    if (!status.ok()) return status;
  }
  const auto* text = std::get_if<std::string>(&request.prompt);
  if (text != nullptr && text->size() > model.max_prompt_bytes()) {
    return absl::OutOfRangeError(
        absl::StrCat("text has ", text->size(), " bytes; no text of more than ",
                     model.max_prompt_bytes(), " fits the model's ",
                     model.max_positions(), " positions"));
  }
  return ValidateTokenIds(request.stop.stop_token_ids, vocab_size,
                          "stop.stop_token_ids");
}

// Before tokenizing; the queue counts about right.
int64_t EstimateTokens(const GenerationRequest& request) {
  if (const auto* ids = std::get_if<std::vector<TokenId>>(&request.prompt)) {
    return static_cast<int64_t>(ids->size());
  }
  return static_cast<int64_t>(std::get<std::string>(request.prompt).size()) /
             4 +
         1;
}

}  // namespace

absl::Status ValidateName(const char* key, const std::string& name) {
  if (!name.empty() && name.size() <= kMaxNameBytes &&
      std::all_of(name.begin(), name.end(), absl::ascii_isgraph)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(key, " must be 1 to ", kMaxNameBytes,
                   " printable ASCII characters without spaces"));
}

GenerationService::GenerationService(Options options,
                                     const ModelRegistry* registry,
                                     TextExecutor* executor)
    : options_(options),
      registry_(registry),
      executor_(executor),
      id_prefix_(absl::StrCat(absl::Hex(RandomSeed(), absl::kZeroPad16))) {}

GenerationService::~GenerationService() { BINARYMOS_CHECK_EQ(num_active(), 0); }

std::string GenerationService::NewRequestId() {
  return absl::StrCat(id_prefix_, "-", ++num_names_);
}

absl::StatusOr<std::shared_ptr<Generation>> GenerationService::Start(
    GenerationRequest request, CallInfo call, GenerationSink* sink) {
  const std::string request_id = call.request_id;
  const char* reason = nullptr;
  auto generation = TryStart(request, call, sink, reason);
  if (generation.ok()) return generation;
  const absl::Status& status = generation.status();
  if (reason == nullptr) reason = RejectionReason(status);
  if (Metrics* metrics = metrics_) metrics->RecordRejection(status, reason);
  Log(LogLevel::kInfo, "request refused",
      {{"request_id", request_id},
       {"status", absl::StatusCodeToString(status.code())},
       {"reason", reason},
       {"message", std::string(status.message())}});
  return generation;
}

absl::StatusOr<std::shared_ptr<Generation>> GenerationService::TryStart(
    GenerationRequest& request, CallInfo& call, GenerationSink* sink,
    const char*& refusal_reason) {
  absl::Status status = Validate(request);
  if (!status.ok()) return status;
  const absl::StatusOr<ServedModel*> model = registry_->Find(request.model);
  if (!model.ok()) return model.status();
  status = ValidateForModel(request, **model);
  if (!status.ok()) return status;
  const TimeLimits limits = LimitsOf(request, call);
  QueueClaim claim;
  claim.tenant = call.tenant;
  claim.priority = request.priority.value_or(0);
  claim.num_tokens = EstimateTokens(request);
  claim.now = std::chrono::steady_clock::now();
  claim.start_by =
      Earlier(limits.queue, Earlier(limits.first_token, limits.total));
  if (claim.start_by && *claim.start_by <= claim.now) {
    return absl::DeadlineExceededError(
        "the deadline had passed when the request arrived");
  }
  QueueRefusal refusal;
  absl::StatusOr<Reservation> reservation =
      (*model)->loop().queue().TryReserve(std::move(claim), &refusal);
  if (!reservation.ok()) {
    status = reservation.status();
    refusal_reason = NameOf(refusal.reason);
    if (absl::IsResourceExhausted(status)) {
      status.SetPayload(kRetryInfoType,
                        absl::Cord(RetryInfo(refusal.retry_after)));
    }
    return status;
  }
  if (!request.sampling.seed) request.sampling.seed = RandomSeed();

  const RequestId id = next_id_++;
  Generation::Context context;
  context.model = *model;
  context.executor = executor_;
  context.metrics = metrics_;
  context.default_max_tokens = options_.default_max_tokens;
  context.on_end = [this](RequestId ended) { Remove(ended); };
  auto generation = std::make_shared<Generation>(
      std::move(context), id, std::move(request), std::move(call), limits,
      *std::move(reservation), sink);
  {
    MutexLock lock(mutex_);
    active_.emplace(id, generation);
  }
  if (Metrics* metrics = metrics_) metrics->AddOpenStreams(1);
  executor_->Schedule(generation);
  return generation;
}

void GenerationService::Remove(RequestId id) {
  MutexLock lock(mutex_);
  active_.erase(id);
}

std::vector<std::shared_ptr<Generation>> GenerationService::Active() const {
  MutexLock lock(mutex_);
  std::vector<std::shared_ptr<Generation>> active;
  active.reserve(active_.size());
  for (const auto& [id, generation] : active_) active.push_back(generation);
  return active;
}

int GenerationService::Abort(const std::vector<std::string>& request_ids) {
  int num_found = 0;
  for (const std::shared_ptr<Generation>& generation : Active()) {
    if (std::find(request_ids.begin(), request_ids.end(),
                  generation->request_id()) == request_ids.end()) {
      continue;
    }
    ++num_found;
    generation->Cancel(absl::CancelledError("aborted by Control.Abort"));
  }
  return num_found;
}

void GenerationService::CancelAll(const absl::Status& status) {
  for (const std::shared_ptr<Generation>& generation : Active()) {
    generation->Cancel(status);
  }
}

int GenerationService::num_active() const {
  MutexLock lock(mutex_);
  return static_cast<int>(active_.size());
}

}  // namespace binarymos
