#include "server/generation_service.h"

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

constexpr size_t kMaxRequestIdBytes = 128;
constexpr std::chrono::milliseconds kMaxTimeLimit =
    std::chrono::hours(24 * 365);

// google.rpc.RetryInfo{retry_delay: {seconds: 1}} in the wire format: field 1,
// two bytes: field 1, varint 1.
constexpr char kRetryInOneSecond[] = "\x0a\x02\x08\x01";

uint64_t RandomSeed() {
  uint64_t seed = 0;
  BINARYMOS_CHECK_EQ(getrandom(&seed, sizeof(seed), 0),
                     static_cast<ssize_t>(sizeof(seed)));
  return seed;
}

std::optional<MonotonicTime> Deadline(const GenerationRequest& request,
                                      const CallInfo& call) {
  if (!request.time_limit_ms) return call.deadline;
  const auto limit = std::min(std::chrono::milliseconds(*request.time_limit_ms),
                              kMaxTimeLimit);
  const MonotonicTime own = call.arrival + limit;
  return call.deadline ? std::min(*call.deadline, own) : own;
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

absl::Status ValidateRequestId(const std::string& id) {
  if (!id.empty() && id.size() <= kMaxRequestIdBytes &&
      std::all_of(id.begin(), id.end(), absl::ascii_isgraph)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("x-request-id must be 1 to ", kMaxRequestIdBytes,
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
  auto generation = TryStart(request, call, sink);
  if (generation.ok()) return generation;
  const absl::Status& status = generation.status();
  if (Metrics* metrics = metrics_) {
    metrics->RecordRejection(status, RejectionReason(status));
  }
  Log(LogLevel::kInfo, "request refused",
      {{"request_id", request_id},
       {"status", absl::StatusCodeToString(status.code())},
       {"message", std::string(status.message())}});
  return generation;
}

absl::StatusOr<std::shared_ptr<Generation>> GenerationService::TryStart(
    GenerationRequest& request, CallInfo& call, GenerationSink* sink) {
  absl::Status status = Validate(request);
  if (!status.ok()) return status;
  const absl::StatusOr<ServedModel*> model = registry_->Find(request.model);
  if (!model.ok()) return model.status();
  status = ValidateForModel(request, **model);
  if (!status.ok()) return status;
  const std::optional<MonotonicTime> deadline = Deadline(request, call);
  if (deadline && *deadline <= std::chrono::steady_clock::now()) {
    return absl::DeadlineExceededError(
        "the deadline had passed when the request arrived");
  }
  absl::StatusOr<Reservation> reservation = (*model)->loop().queue().TryReserve(
      /*tenant=*/"", EstimateTokens(request));
  if (!reservation.ok()) {
    status = reservation.status();
    if (absl::IsResourceExhausted(status)) {
      status.SetPayload(kRetryInfoType, absl::Cord(kRetryInOneSecond));
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
      std::move(context), id, std::move(request), std::move(call), deadline,
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
