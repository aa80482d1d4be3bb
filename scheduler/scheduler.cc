#include "scheduler/scheduler.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/core/check.h"

namespace binarymos {
namespace {

FinishReason ReasonOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kCancelled:
      return FinishReason::kCancelled;
    case absl::StatusCode::kDeadlineExceeded:
      return FinishReason::kDeadline;
    default:
      return FinishReason::kError;
  }
}

bool RunsBeforePtr(const Sequence* a, const Sequence* b) {
  return RunsBefore(*a, *b);
}

void CountStepTokens(StepTokensHistogram& histogram, int num_tokens) {
  const auto& bounds = StepTokensHistogram::kBounds;
  const auto bound = std::lower_bound(bounds.begin(), bounds.end(), num_tokens);
  ++histogram.counts[static_cast<size_t>(bound - bounds.begin())];
  histogram.sum += num_tokens;
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(options),
      watermark_blocks_(static_cast<int>(
          std::ceil(options.watermark * options.cache.num_blocks))),
      kv_(options.cache, options.prefix_caching),
      shares_(options.cache.max_num_batched_tokens) {
  const CacheConfig& cache = options_.cache;
  BINARYMOS_CHECK_GT(cache.num_blocks, 0);
  BINARYMOS_CHECK_GT(cache.block_size, 0);
  BINARYMOS_CHECK_GT(cache.max_num_seqs, 0);
  BINARYMOS_CHECK_GT(cache.max_model_len, 0);
  BINARYMOS_CHECK_GT(cache.max_num_batched_tokens, 0);
  BINARYMOS_CHECK(options.watermark >= 0 && options.watermark < 1);

  const auto max_num_seqs = static_cast<size_t>(cache.max_num_seqs);
  for (SlotId slot = cache.max_num_seqs; slot-- > 0;) {
    free_slots_.push_back(slot);
  }
  running_.reserve(max_num_seqs);
  prefilling_.reserve(max_num_seqs);
  plan_.rows.reserve(max_num_seqs);
  for (StepInFlight& step : in_flight_) step.rows.reserve(max_num_seqs);
  stats_.num_blocks = cache.num_blocks;
  UpdateGauges();
}

Scheduler::~Scheduler() = default;

void Scheduler::Add(std::shared_ptr<const Request> request, MonotonicTime now) {
  const RequestId id = request->id;
  auto state = std::make_unique<RequestState>();
  state->num_unfinished = request->num_samples;
  state->samples.reserve(static_cast<size_t>(request->num_samples));
  for (int i = 0; i < request->num_samples; ++i) {
    state->samples.emplace_back(request, i, options_.cache.max_model_len);
  }
  AddDeadlines(*request);
  std::vector<Sequence>& samples = state->samples;
  state->request = std::move(request);
  const bool is_new = requests_.try_emplace(id, std::move(state)).second;
  BINARYMOS_CHECK(is_new) << "request " << id;

  for (Sequence& seq : samples) {
    seq.place.share = &shares_.Join(seq.request().tenant);
    waiting_.Insert(seq);
    // Its first token needs a position too.
    if (NeverFits(seq.num_tokens() + 1)) EndTooLong(seq, now);
  }
  UpdateGauges();
}

void Scheduler::Abort(RequestId id, const absl::Status& status,
                      MonotonicTime now) {
  const auto found = requests_.find(id);
  if (found == requests_.end()) return;
  for (Sequence& seq : found->second->samples) {
    if (seq.place.state == State::kFinished) continue;
    End(seq, ReasonOf(status), status, now);
  }
  UpdateGauges();
}

void Scheduler::AbortAll(const absl::Status& status, MonotonicTime now) {
  std::vector<RequestId> ids;
  for (const auto& [id, state] : requests_) ids.push_back(id);
  std::sort(ids.begin(), ids.end());
  for (const RequestId id : ids) Abort(id, status, now);
}

void Scheduler::StopAt(RequestId id, int sample, int num_tokens,
                       MonotonicTime now) {
  const auto found = requests_.find(id);
  if (found == requests_.end()) return;
  std::vector<Sequence>& samples = found->second->samples;
  if (sample < 0 || sample >= static_cast<int>(samples.size())) return;
  Sequence& seq = samples[static_cast<size_t>(sample)];
  if (seq.place.state == State::kFinished) return;
  num_tokens = std::max(num_tokens, 0);
  seq.StopAfter(num_tokens);
  if (seq.num_output_tokens() >= num_tokens) {
    StreamEvent& event = Emit(seq);
    End(seq, FinishReason::kStopString, absl::OkStatus(), now, event);
    event.event.finish->num_output_tokens = num_tokens;
  }
  UpdateGauges();
}

const BatchPlan& Scheduler::Schedule(MonotonicTime now) {
  BINARYMOS_CHECK_LT(num_in_flight_, kMaxStepsInFlight);
  ForgetEndedRequests();
  started_.clear();
  plan_.rows.clear();
  plan_.num_tokens = 0;
  plan_.step = next_step_;
  in_flight_[(first_in_flight_ + num_in_flight_) % kMaxStepsInFlight]
      .rows.clear();
  budget_ = options_.cache.max_num_batched_tokens;
  short_of_blocks_ = false;

  EndExpired(now);
  MakeWay();
  ScheduleRunning(now);
  if (!short_of_blocks_) ScheduleWaiting(now);

  if (plan_.rows.empty()) {
    plan_.step = kNoStep;
  } else {
    in_flight_[(first_in_flight_ + num_in_flight_) % kMaxStepsInFlight].step =
        next_step_++;
    ++num_in_flight_;
  }
  slot_ops_.swap(next_slot_ops_);
  next_slot_ops_.clear();
  UpdateGauges();
  return plan_;
}

void Scheduler::ForgetEndedRequests() {
  std::erase_if(ended_, [](const std::unique_ptr<RequestState>& state) {
    return std::all_of(
        state->samples.begin(), state->samples.end(),
        [](const Sequence& seq) { return seq.place.num_rows_in_flight == 0; });
  });
}

void Scheduler::EndExpired(MonotonicTime now) {
  while (!deadlines_.empty() && deadlines_.begin()->time <= now) {
    const Deadline& passed = *deadlines_.begin();
    // Ending the request erases its entries.
    Abort(passed.id, absl::DeadlineExceededError(Late(passed.stage)), now);
  }
}

const char* Scheduler::Late(Stage stage) {
  switch (stage) {
    case Stage::kStart:
      return "the request waited in the queue for as long as it was allowed to";
    case Stage::kFirstToken:
      return "the request had no token in the time that it was allowed";
    case Stage::kEnd:
      break;
  }
  return "the request's deadline has passed";
}

std::optional<MonotonicTime> Scheduler::DeadlineOf(const Request& request,
                                                   Stage stage) {
  switch (stage) {
    case Stage::kStart:
      return request.queue_deadline;
    case Stage::kFirstToken:
      return request.first_token_deadline;
    case Stage::kEnd:
      break;
  }
  return request.deadline;
}

void Scheduler::AddDeadlines(const Request& request) {
  for (const Stage stage : kStages) {
    if (const auto time = DeadlineOf(request, stage)) {
      deadlines_.insert({*time, request.id, stage});
    }
  }
}

void Scheduler::EraseDeadline(const Request& request, Stage stage) {
  if (const auto time = DeadlineOf(request, stage)) {
    deadlines_.erase({*time, request.id, stage});
  }
}

// The tenant that was served least, if it has to wait, gets slots and blocks
// from those that are far ahead of it and hold more of them. They keep at least
// as much as it has then, and what gives way does not take anything back, so
// nothing goes back and forth.
void Scheduler::MakeWay() {
  if (waiting_.size() == 0 || shares_.num_tenants() < 2) return;
  CollectPrefilling();
  Sequence* const seq = waiting_.Next(
      ++round_, [this](Sequence& asked) { return ProbeWaiting(asked); });
  if (seq == nullptr || seq->place.order >= 0 || NeverFits(seq->num_tokens())) {
    return;
  }

  const int num_blocks = kv_.NumBlocksFor(seq->num_tokens());
  const int num_blocks_to_come =
      kv_.pool().num_free_blocks() + num_held_blocks_;
  const int num_missing = num_blocks + NumToKeepFree() - num_blocks_to_come;
  if (num_missing > 0 &&
      !TakeBack(*seq, num_blocks, num_missing, [](const Sequence& running) {
        return static_cast<int>(running.blocks.table.size());
      })) {
    return;
  }
  const auto one_slot = [](const Sequence&) { return 1; };
  while (true) {
    const int num_slots_to_come =
        static_cast<int>(free_slots_.size()) + num_held_;
    if (num_slots_to_come >= seq->place.share->num_waiting ||
        !TakeBack(*seq, num_slots_to_come + 1, 1, one_slot)) {
      return;
    }
  }
}

// Preempts running sequences until `num_missing` of what `size` counts come
// back, so that `seq`'s tenant can have `num_wanted` more. False: nothing has
// changed, because nobody has as many to give.
bool Scheduler::TakeBack(const Sequence& seq, int num_wanted, int num_missing,
                         int (*size)(const Sequence&)) {
  seq.place.share->num_held = 0;
  for (const Sequence* running : running_) running->place.share->num_held = 0;
  for (const Sequence* running : running_) {
    running->place.share->num_held += size(*running);
  }
  victims_.clear();
  while (num_missing > 0) {
    Sequence* const victim = LastOfWhoHasMost(seq, num_wanted, size);
    if (victim == nullptr) return false;
    victims_.push_back(victim);
    victim->place.share->num_held -= size(*victim);
    num_missing -= size(*victim);
  }
  for (Sequence* victim : victims_) Preempt(*victim);
  return true;
}

// Of the tenant that has most to give to `seq`'s, the last that was admitted:
// it loses least.
Sequence* Scheduler::LastOfWhoHasMost(const Sequence& seq, int num_wanted,
                                      int (*size)(const Sequence&)) {
  const TenantShare& share = *seq.place.share;
  Sequence* found = nullptr;
  for (auto i = running_.rbegin(); i != running_.rend(); ++i) {
    Sequence& running = **i;
    const TenantShare& other = *running.place.share;
    if (running.request().priority < seq.request().priority) break;
    if (!shares_.IsFarAhead(other, share) ||
        other.num_held - size(running) < share.num_held + num_wanted ||
        (found != nullptr && other.num_held <= found->place.share->num_held) ||
        std::find(victims_.begin(), victims_.end(), &running) !=
            victims_.end()) {
      continue;
    }
    found = &running;
  }
  return found;
}

void Scheduler::ScheduleRunning(MonotonicTime now) {
  size_t i = 0;
  while (i < running_.size() && budget_ > 0) {
    Sequence& seq = *running_[i];
    const int num_tokens = CapTokens(seq.num_computable_tokens());
    if (num_tokens == 0) {  // waits for the step in flight
      ++i;
      continue;
    }
    if (NeverFits(seq.num_computed_tokens() + num_tokens)) {
      if (seq.num_pending_tokens() == 0) {
        EndTooLong(seq, now);  // leaves running_
      } else {
        ++i;
      }
      continue;
    }
    if (MakeRoom(seq, num_tokens)) AddRow(seq, num_tokens);
    ++i;
  }
}

// Finds room for `num_tokens` more, from the last running sequence if need be.
// Those are behind `seq`, so they have no row in the plan yet. False: not in
// this step.
bool Scheduler::MakeRoom(Sequence& seq, int num_tokens) {
  while (!kv_.Reserve(seq, seq.num_computed_tokens() + num_tokens)) {
    short_of_blocks_ = true;
    // What the step in flight holds comes back before anybody must give up.
    if (num_held_ > 0) return false;
    Sequence& victim = *running_.back();
    Preempt(victim);
    if (&victim == &seq) return false;
  }
  return true;
}

void Scheduler::Preempt(Sequence& seq) {
  running_.erase(std::find(running_.begin(), running_.end(), &seq));
  --seq.place.share->num_running;
  seq.place.state = State::kWaiting;
  ++seq.place.num_preemptions;
  ++stats_.num_preemptions;
  kv_.CacheFullBlocks(seq);
  ReleaseOrHold(seq);
  seq.Restart();
  waiting_.Insert(seq);
}

void Scheduler::ScheduleWaiting(MonotonicTime now) {
  if (waiting_.size() == 0) return;
  CollectPrefilling();
  ++round_;
  const auto probe = [this](Sequence& seq) { return ProbeWaiting(seq); };
  while (budget_ > 0 && !free_slots_.empty() && HasRoomToAdmit()) {
    Sequence* const seq = waiting_.Next(round_, probe);
    if (seq == nullptr) break;
    if (NeverFits(seq->num_tokens())) {
      EndTooLong(*seq, now);
    } else if (!Admit(*seq, now)) {
      break;  // nobody overtakes
    }
  }
}

void Scheduler::CollectPrefilling() {
  prefilling_.clear();
  for (Sequence* seq : running_) {
    if (seq->num_computed_tokens() < seq->num_tokens()) {
      prefilling_.push_back(seq);
    }
  }
}

// Blocks that admission leaves free.
int Scheduler::NumToKeepFree() const {
  return running_.empty() ? 0 : watermark_blocks_;
}

bool Scheduler::HasRoomToAdmit() const {
  return kv_.pool().num_free_blocks() > NumToKeepFree();
}

// Tokens of it that are cached, or nothing while somebody computes those that
// follow: the samples of a request, and requests that begin alike, compute what
// they share once.
std::optional<int> Scheduler::ProbeWaiting(Sequence& seq) {
  if (!kv_.prefix_caching() || WantsPromptLogprobs(seq)) return 0;
  const int block_size = options_.cache.block_size;
  const int num_cached = kv_.CountCachedBlocks(seq);
  if (num_cached < kv_.num_shareable_blocks(seq)) {
    const int end = (num_cached + 1) * block_size;
    for (Sequence* other : prefilling_) {
      if (other->num_computed_tokens() < end &&
          kv_.SameBlock(seq, *other, num_cached)) {
        return std::nullopt;
      }
    }
  }
  return num_cached * block_size;
}

bool Scheduler::Admit(Sequence& seq, MonotonicTime now) {
  if (seq.place.held) return false;
  // A prompt whose log-probabilities are wanted has to be computed.
  std::span<const BlockId> prefix;
  if (!WantsPromptLogprobs(seq)) prefix = kv_.MatchPrefix(seq);
  const int num_cached =
      static_cast<int>(prefix.size()) * options_.cache.block_size;
  // The whole prompt at once: what is admitted gets through its prefill.
  if (!kv_.Reserve(seq, seq.num_tokens(), prefix, NumToKeepFree())) {
    return false;
  }

  waiting_.CountOvertake(seq);
  waiting_.Erase(seq);
  if (seq.place.order < 0) seq.place.order = next_order_++;
  running_.insert(
      std::upper_bound(running_.begin(), running_.end(), &seq, RunsBeforePtr),
      &seq);
  ++seq.place.share->num_running;
  seq.place.state = State::kRunning;
  seq.place.slot = free_slots_.back();
  free_slots_.pop_back();
  seq.Start(num_cached);
  seq.place.num_charged = std::max(seq.place.num_charged, num_cached);
  if (!seq.place.times.first_scheduled) {
    seq.place.times.first_scheduled = now;
    seq.place.num_cached_tokens = num_cached;
    if (kv_.prefix_caching()) {
      stats_.num_cache_query_tokens += seq.num_tokens();
      stats_.num_cache_hit_tokens += num_cached;
    }
  }
  RequestState& state = *requests_.at(seq.request().id);
  if (!state.started) {
    state.started = true;
    EraseDeadline(*state.request, Stage::kStart);
    started_.push_back(state.request->id);
  }
  next_slot_ops_.push_back(
      {.kind = SlotOperation::Kind::kAdd,
       .slot = seq.place.slot,
       .init = {.sampling = &seq.request().sampling,
                .sample_index = static_cast<uint32_t>(seq.sample()),
                .prompt = seq.request().prompt,
                .output = seq.output()}});
  AddRow(seq, CapTokens(seq.num_computable_tokens()));
  if (seq.num_computed_tokens() < seq.num_tokens()) prefilling_.push_back(&seq);
  return true;
}

int Scheduler::CapTokens(int num_tokens) const {
  const int threshold = options_.long_prefill_token_threshold;
  if (threshold > 0) num_tokens = std::min(num_tokens, threshold);
  return std::min(num_tokens, budget_);
}

void Scheduler::AddRow(Sequence& seq, int num_tokens) {
  BatchRow& row = plan_.rows.emplace_back();
  row.slot = seq.place.slot;
  row.first_position = seq.num_computed_tokens();
  if (row.first_position < seq.num_tokens()) {
    row.tokens = seq.tokens().subspan(static_cast<size_t>(row.first_position),
                                      static_cast<size_t>(num_tokens));
  } else {
    row.token_of_step = seq.pending_step();
  }
  row.block_table = std::span<const BlockId>(seq.blocks.table)
                        .first(static_cast<size_t>(
                            kv_.NumBlocksFor(row.first_position + num_tokens)));
  row.sample = seq.Advance(num_tokens, plan_.step);
  Charge(seq, num_tokens, row.sample);
  if (row.sample) row.num_logprobs = seq.request().num_logprobs;
  if (WantsPromptLogprobs(seq) &&
      row.first_position < seq.num_prompt_tokens()) {
    row.num_prompt_logprobs = seq.request().num_prompt_logprobs;
  }
  kv_.CacheFullBlocks(seq);

  ++seq.place.num_rows_in_flight;
  in_flight_[(first_in_flight_ + num_in_flight_) % kMaxStepsInFlight]
      .rows.push_back({.seq = &seq,
                       .first_position = row.first_position,
                       .num_tokens = num_tokens,
                       .sample = row.sample});
  plan_.num_tokens += num_tokens;
  budget_ -= num_tokens;
}

// The newest `num_tokens` computed ones, but for those that it was charged for
// before a preemption.
void Scheduler::Charge(Sequence& seq, int num_tokens, bool sample) {
  const int end = seq.num_computed_tokens();
  int& charged = seq.place.num_charged;
  const int begin = std::max(end - num_tokens, charged);
  const int num_prompt = std::min(end, seq.num_prompt_tokens()) - begin;
  FairShare::Charge(*seq.place.share, std::max(num_prompt, 0), sample ? 1 : 0);
  charged = std::max(charged, end);
}

void Scheduler::Commit(const StepResult& result, MonotonicTime now) {
  BINARYMOS_CHECK_GT(num_in_flight_, 0);
  StepInFlight& step = in_flight_[first_in_flight_];
  BINARYMOS_CHECK_EQ(result.step, step.step);
  BINARYMOS_CHECK_EQ(result.rows.size(), step.rows.size());
  first_in_flight_ = (first_in_flight_ + 1) % kMaxStepsInFlight;
  --num_in_flight_;

  CountStep(step, result.stats);
  for (size_t i = 0; i < step.rows.size(); ++i) {
    BINARYMOS_CHECK_EQ(result.rows[i].slot, step.rows[i].seq->place.slot);
    CommitRow(step.rows[i], result.rows[i], now);
  }
  UpdateGauges();
}

void Scheduler::CommitRow(const RowInFlight& planned, const StepResultRow& row,
                          MonotonicTime now) {
  Sequence& seq = *planned.seq;
  --seq.place.num_rows_in_flight;
  const bool finished = seq.place.state == State::kFinished;
  if (row.not_finite && !finished) kv_.Forget(seq);
  // A preempted sequence gives up its blocks, not its token.
  if (seq.place.held && seq.place.num_rows_in_flight == 0) Release(seq);
  if (finished) return;

  if (row.not_finite) {
    ++stats_.num_not_finite;
    End(seq, FinishReason::kError,
        absl::InternalError("the model's logits are not finite"), now);
    return;
  }
  TakePromptLogprobs(planned, row);
  if (!planned.sample) return;

  BINARYMOS_CHECK_GE(row.token, 0) << "slot " << row.slot << " has no token";
  const std::optional<FinishReason> reason = seq.Append(row.token);
  ++stats_.num_generated_tokens;
  RequestTimes& times = seq.place.times;
  if (!times.first_token) {
    times.first_token = now;
    EraseDeadline(seq.request(), Stage::kFirstToken);
  }
  times.last_token = now;

  StreamEvent& event = Emit(seq);
  event.event.token = row.token;
  if (seq.request().num_logprobs >= 0) event.event.logprobs = row.logprobs;
  if (seq.place.prompt_logprobs_done) {
    event.event.prompt_logprobs = std::move(seq.place.prompt_logprobs);
    seq.place.prompt_logprobs.clear();
  }
  if (reason) End(seq, *reason, absl::OkStatus(), now, event);
}

// By position, because a preemption can make a chunk come twice.
void Scheduler::TakePromptLogprobs(const RowInFlight& planned,
                                   const StepResultRow& row) {
  Sequence& seq = *planned.seq;
  if (!WantsPromptLogprobs(seq)) return;
  const int num_prompt = seq.num_prompt_tokens();
  std::vector<PositionLogprobs>& logprobs = seq.place.prompt_logprobs;
  logprobs.resize(static_cast<size_t>(num_prompt - 1));
  int position = std::max(1, planned.first_position);
  for (const PositionLogprobs& entry : row.prompt_logprobs) {
    if (position >= num_prompt) break;
    logprobs[static_cast<size_t>(position++ - 1)] = entry;
  }
  seq.place.prompt_logprobs_done =
      planned.first_position + planned.num_tokens >= num_prompt;
}

void Scheduler::CountStep(const StepInFlight& step, const StepStats& stats) {
  ++stats_.num_steps;
  int num_tokens = 0;
  for (const RowInFlight& row : step.rows) {
    num_tokens += row.num_tokens;
    stats_.num_prompt_tokens += std::clamp(
        row.seq->num_prompt_tokens() - row.first_position, 0, row.num_tokens);
  }
  CountStepTokens(stats_.step_tokens, num_tokens);
  stats_.compute_time += stats.compute_time;
  stats_.longest_step = std::max(stats_.longest_step, stats.compute_time);
  if (!stats.mean_gate.empty()) stats_.mean_gate = stats.mean_gate;
}

void Scheduler::TakeEvents(std::vector<StreamEvent>& events) {
  if (events.empty()) {
    events.swap(events_);
    return;
  }
  std::move(events_.begin(), events_.end(), std::back_inserter(events));
  events_.clear();
}

std::optional<MonotonicTime> Scheduler::next_deadline() const {
  if (deadlines_.empty()) return std::nullopt;
  return deadlines_.begin()->time;
}

bool Scheduler::NeverFits(int num_tokens) const {
  return kv_.NumBlocksFor(num_tokens) > kv_.pool().num_blocks();
}

void Scheduler::EndTooLong(Sequence& seq, MonotonicTime now) {
  const CacheConfig& cache = options_.cache;
  End(seq, FinishReason::kError,
      absl::ResourceExhaustedError(absl::StrCat(
          "a sequence of ", seq.num_tokens(),
          " tokens has no room for another: the KV cache holds ",
          static_cast<int64_t>(cache.num_blocks) * cache.block_size,
          " positions in all; shorten it or give the cache more memory")),
      now);
}

bool Scheduler::WantsPromptLogprobs(const Sequence& seq) const {
  return seq.request().num_prompt_logprobs >= 0 && seq.sample() == 0 &&
         !seq.place.prompt_logprobs_done;
}

StreamEvent& Scheduler::Emit(Sequence& seq) {
  StreamEvent& event = events_.emplace_back();
  event.request = seq.shared_request();
  event.event.sample = seq.sample();
  return event;
}

void Scheduler::End(Sequence& seq, FinishReason reason, absl::Status status,
                    MonotonicTime now) {
  End(seq, reason, std::move(status), now, Emit(seq));
}

void Scheduler::End(Sequence& seq, FinishReason reason, absl::Status status,
                    MonotonicTime now, StreamEvent& event) {
  if (seq.place.state == State::kRunning) {
    running_.erase(std::find(running_.begin(), running_.end(), &seq));
    --seq.place.share->num_running;
  } else {
    waiting_.Erase(seq);
  }
  shares_.Leave(*std::exchange(seq.place.share, nullptr));
  seq.place.state = State::kFinished;
  seq.place.times.finished = now;
  if (reason != FinishReason::kError) kv_.CacheFullBlocks(seq);
  ReleaseOrHold(seq);

  Finish& finish = event.event.finish.emplace();
  finish.reason = reason;
  finish.status = std::move(status);
  if (reason == FinishReason::kEos || reason == FinishReason::kStopToken) {
    finish.matched_token = event.event.token;
  }
  finish.num_prompt_tokens = seq.num_prompt_tokens();
  finish.num_cached_tokens = seq.place.num_cached_tokens;
  finish.num_output_tokens = seq.num_output_tokens();
  finish.num_preemptions = seq.place.num_preemptions;
  finish.times = seq.place.times;

  const auto found = requests_.find(seq.request().id);
  if (--found->second->num_unfinished > 0) return;
  event.request_ended = true;
  for (const Stage stage : kStages) EraseDeadline(seq.request(), stage);
  ended_.push_back(std::move(found->second));
  requests_.erase(found);
}

void Scheduler::ReleaseOrHold(Sequence& seq) {
  if (seq.place.held) return;
  if (seq.place.num_rows_in_flight > 0) {
    seq.place.held = true;
    ++num_held_;
    num_held_blocks_ += static_cast<int>(seq.blocks.table.size());
  } else {
    Release(seq);
  }
}

void Scheduler::Release(Sequence& seq) {
  if (seq.place.held) {
    seq.place.held = false;
    --num_held_;
    num_held_blocks_ -= static_cast<int>(seq.blocks.table.size());
  }
  kv_.Release(seq);
  if (seq.place.slot == kNoSlot) return;
  next_slot_ops_.push_back(
      {.kind = SlotOperation::Kind::kRemove, .slot = seq.place.slot});
  free_slots_.push_back(seq.place.slot);
  seq.place.slot = kNoSlot;
}

void Scheduler::UpdateGauges() {
  stats_.num_running = static_cast<int>(running_.size());
  stats_.num_waiting = waiting_.size();
  stats_.num_free_blocks = kv_.pool().num_free_blocks();
}

}  // namespace binarymos
