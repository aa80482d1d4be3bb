#include "tests/simulation/simulation.h"

#include <algorithm>
#include <string>
#include <utility>

#include "gtest/gtest.h"
#include "tests/scheduler/scheduler_test_peer.h"

namespace binarymos {
namespace {

using Progress = ClientSeen::Progress;

void TakeEarlier(std::optional<MonotonicTime>& earliest,
                 std::optional<MonotonicTime> time) {
  if (time && (!earliest || *time < *earliest)) earliest = time;
}

}  // namespace

Simulation::Simulation(Scenario scenario)
    : scenario_(std::move(scenario)),
      runner_(scenario_.options.cache, scenario_.max_steps_in_flight,
              scenario_.cost, now_),
      loop_(runner_, scenario_.options, scenario_.limits,
            [this] { return now_; }),
      order_(scenario_),
      clients_(scenario_.clients.size()) {
  runner_.on_submit = [this](const BatchPlan& plan) { CheckPlan(plan); };
  if (scenario_.fail_submit_at >= 0) {
    runner_.fake().FailSubmitAt(scenario_.fail_submit_at,
                                absl::UnavailableError("submit"));
  } else if (scenario_.fail_wait_at >= 0) {
    runner_.fake().FailWaitAt(scenario_.fail_wait_at,
                              absl::InternalError("wait"));
  }
  for (size_t i = 0; i < clients_.size(); ++i) {
    const auto num_samples = static_cast<size_t>(request(i).num_samples);
    clients_[i].samples.resize(num_samples);
    clients_[i].stopped.resize(num_samples);
    clients_[i].stopped_ahead.resize(num_samples);
    scenario_.clients[i].request->stream =
        std::make_shared<TokenStream>(nullptr);
  }
}

void Simulation::Run() {
  constexpr int kMaxTurns = 1'000'000;
  while (true) {
    ASSERT_LT(turn_, kMaxTurns) << "there is no end";
    Act();
    const MonotonicTime begin = now_;
    const bool busy = loop_.Step(now_);
    num_submitted_ = 0;
    ++turn_;
    ReadAll();
    CheckTurn(begin);
    if (on_turn) on_turn();
    if (::testing::Test::HasFailure()) return;
    std::erase_if(live_, [this](size_t i) {
      return clients_[i].progress != Progress::kTokenizing && !Active(i);
    });
    if (busy) continue;
    CheckIdle();
    const std::optional<MonotonicTime> next = NextAction();
    if (!next) break;
    now_ = std::max(now_, *next);
  }
  loop_.Stop();
  for (size_t i = 0; i < clients_.size(); ++i) {
    scenario_.clients[i].request->stream->Drain(events_);
    EXPECT_TRUE(events_.empty()) << "client " << i << " missed something";
    EXPECT_NE(clients_[i].progress, Progress::kTokenizing);
    if (clients_[i].progress != Progress::kSubmitted) continue;
    for (int s = 0; s < request(i).num_samples; ++s) CheckEnd(i, s);
  }
  if (!failed_on_purpose()) {
    SchedulerTestPeer::CheckIdle(SchedulerTestPeer::scheduler(loop_));
  }
  EXPECT_EQ(loop_.queue().num_waiting(), 0);
}

bool Simulation::Active(size_t client) const {
  const ClientSeen& seen = clients_[client];
  return seen.progress == Progress::kSubmitted &&
         seen.num_ended < request(client).num_samples;
}

// --- What happens ---

void Simulation::Act() {
  while (num_arrived_ < clients_.size() &&
         request(num_arrived_).arrival <= now_) {
    live_.push_back(num_arrived_);
    Arrive(num_arrived_++);
  }
  for (const size_t i : live_) {
    ClientSeen& seen = clients_[i];
    const SimulatedClient& client = scenario_.clients[i];
    if (seen.progress == Progress::kTokenizing &&
        request(i).arrival + client.tokenizing <= now_) {
      Submit(i);
    }
    if (Active(i) && client.leaves_at && *client.leaves_at <= now_) Leave(i);
  }
  while (num_flushed_ < scenario_.flushes.size() &&
         scenario_.flushes[num_flushed_] <= now_) {
    ++num_flushed_;
    loop_.queue().Push(FlushPrefixCacheCommand{});
  }
  if (!aborted_all_ && scenario_.aborts_all_at &&
      *scenario_.aborts_all_at <= now_) {
    aborted_all_ = true;
    for (const size_t i : live_) {
      if (Active(i) && !clients_[i].left) clients_[i].left = turn_;
    }
    loop_.queue().Push(AbortAllCommand{absl::CancelledError("all")});
  }
  if (!closed_ && scenario_.closes_at && *scenario_.closes_at <= now_) {
    closed_ = true;
    loop_.queue().Close();
  }
}

void Simulation::Arrive(size_t client) {
  ClientSeen& seen = clients_[client];
  auto reservation = loop_.queue().TryReserve(ClaimOf(client), &seen.refusal);
  if (reservation.ok()) {
    seen.progress = Progress::kTokenizing;
    seen.reservation = *std::move(reservation);
  } else {
    seen.progress = Progress::kRefused;
    CheckRefusal(client, reservation.status());
  }
  CheckQueue();
}

QueueClaim Simulation::ClaimOf(size_t client) const {
  QueueClaim claim;
  claim.tenant = request(client).tenant;
  claim.priority = request(client).priority;
  claim.num_tokens = std::ssize(request(client).prompt);
  claim.now = request(client).arrival;
  TakeEarlier(claim.start_by, request(client).queue_deadline);
  TakeEarlier(claim.start_by, request(client).first_token_deadline);
  TakeEarlier(claim.start_by, request(client).deadline);
  return claim;
}

void Simulation::Submit(size_t client) {
  ClientSeen& seen = clients_[client];
  seen.progress = Progress::kSubmitted;
  if (!closed_) ++num_submitted_;
  loop_.queue().Push(SubmitCommand{.request = scenario_.clients[client].request,
                                   .reservation = std::move(seen.reservation)});
  seen.reservation = Reservation();
}

void Simulation::Leave(size_t client) {
  ClientSeen& seen = clients_[client];
  if (seen.left) return;
  seen.left = turn_;
  loop_.queue().Push(AbortCommand{.request = request(client).id,
                                  .status = absl::CancelledError("left")});
}

void Simulation::ReadAll() {
  for (const size_t i : live_) {
    if (!Active(i)) continue;
    // Who has asked for an end looks for it at once.
    if (now_ >= clients_[i].next_read || clients_[i].left) Read(i);
  }
}

void Simulation::Read(size_t client) {
  clients_[client].next_read = now_ + scenario_.clients[client].reading_pause;
  request(client).stream->Drain(events_);
  for (TokenEvent& event : events_) Take(client, std::move(event));
  events_.clear();
  for (int s = 0; s < request(client).num_samples; ++s) React(client, s);
}

void Simulation::Take(size_t client, TokenEvent event) {
  ClientSeen& seen = clients_[client];
  SampleSeen& sample = seen.samples.at(static_cast<size_t>(event.sample));
  EXPECT_FALSE(sample.finish.has_value())
      << "client " << client << ": something comes after the end";
  EXPECT_TRUE(event.token != kNoToken || event.finish.has_value())
      << "client " << client << ": an event of nothing";
  if (event.token != kNoToken) {
    if (sample.tokens.empty()) {
      sample.prompt_logprobs = std::move(event.prompt_logprobs);
    } else {
      EXPECT_TRUE(event.prompt_logprobs.empty()) << "client " << client;
    }
    sample.tokens.push_back(event.token);
    sample.logprobs.push_back(std::move(event.logprobs));
  }
  if (event.finish) {
    sample.finish = *std::move(event.finish);
    ++seen.num_ended;
  }
}

// Finds a stop string, or goes away.
void Simulation::React(size_t client, int sample) {
  const SimulatedClient& behaviour = scenario_.clients[client];
  ClientSeen& seen = clients_[client];
  const auto s = static_cast<size_t>(sample);
  const int num_tokens = static_cast<int>(seen.samples[s].tokens.size());
  const bool ended = seen.samples[s].finish.has_value();
  const int stop =
      s < behaviour.stops_with.size() ? behaviour.stops_with[s] : 0;
  if (stop > 0 && num_tokens >= stop - behaviour.asks_ahead && !ended &&
      !seen.stopped[s]) {
    seen.stopped[s] = true;
    seen.stopped_ahead[s] = num_tokens < stop;
    loop_.queue().Push(StopAtCommand{
        .request = request(client).id, .sample = sample, .num_tokens = stop});
  }
  if (sample == 0 && behaviour.leaves_with >= 0 && !ended &&
      num_tokens >= behaviour.leaves_with) {
    Leave(client);
  }
}

std::optional<MonotonicTime> Simulation::NextAction() const {
  std::optional<MonotonicTime> next =
      SchedulerTestPeer::scheduler(loop_).next_deadline();
  if (num_arrived_ < clients_.size()) {
    TakeEarlier(next, request(num_arrived_).arrival);
  }
  for (const size_t i : live_) {
    const SimulatedClient& client = scenario_.clients[i];
    if (clients_[i].progress == Progress::kTokenizing) {
      TakeEarlier(next, request(i).arrival + client.tokenizing);
    } else if (Active(i)) {
      TakeEarlier(next, clients_[i].next_read);
    }
  }
  return next;
}

// --- What must hold ---

void Simulation::CheckPlan(const BatchPlan& plan) {
  const Scheduler& scheduler = SchedulerTestPeer::scheduler(loop_);
  if (turn_ % scenario_.check_interval == 0) {
    SchedulerTestPeer::CheckInvariants(scheduler);
  }
  order_.Check(scheduler, plan);
}

void Simulation::CheckTurn(MonotonicTime begin) {
  const Scheduler& scheduler = SchedulerTestPeer::scheduler(loop_);
  if (turn_ % scenario_.check_interval == 0) {
    SchedulerTestPeer::CheckInvariants(scheduler);
  }
  CheckQueue();
  for (const size_t i : live_) {
    if (!Active(i)) continue;
    const bool aborted = clients_[i].left && *clients_[i].left < turn_;
    const std::optional<MonotonicTime> limit = LimitOf(i);
    const bool expired = limit && *limit <= begin;
    if (expired) Read(i);
    EXPECT_FALSE(Active(i) && aborted) << "client " << i << " lives on";
    EXPECT_FALSE(Active(i) && expired) << "client " << i << " is late";
  }
}

// The earliest limit of time that counts, as far as the client can tell.
std::optional<MonotonicTime> Simulation::LimitOf(size_t client) const {
  std::optional<MonotonicTime> limit = request(client).deadline;
  const auto& samples = clients_[client].samples;
  const bool has_token =
      std::any_of(samples.begin(), samples.end(),
                  [](const SampleSeen& seen) { return !seen.tokens.empty(); });
  // A token that has not been read yet may have come in time.
  const bool reads_at_once =
      scenario_.clients[client].reading_pause == Duration(0);
  if (!has_token && reads_at_once) {
    TakeEarlier(limit, request(client).first_token_deadline);
  }
  return limit;
}

void Simulation::CheckRefusal(size_t client, const absl::Status& status) {
  using Reason = QueueRefusal::Reason;
  const QueueLimits& limits = scenario_.limits;
  const auto num_waiting = loop_.queue().num_waiting();
  switch (clients_[client].refusal.reason) {
    case Reason::kClosed:
      EXPECT_TRUE(closed_ || failed_on_purpose());
      EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
      return;
    case Reason::kRequests:
      EXPECT_EQ(num_waiting, limits.max_waiting_requests);
      break;
    case Reason::kTokens:
      EXPECT_GT(loop_.queue().num_waiting_tokens() +
                    std::ssize(request(client).prompt),
                limits.max_waiting_tokens);
      break;
    case Reason::kTenantRequests:
      EXPECT_GE(num_waiting, limits.max_waiting_requests_per_tenant);
      break;
    case Reason::kTenantTokens:
      EXPECT_GT(limits.max_waiting_tokens_per_tenant, 0);
      break;
    case Reason::kEstimatedWait:
      EXPECT_GT(loop_.queue().EstimatedWait(ClaimOf(client)),
                limits.max_estimated_wait);
      break;
    case Reason::kDeadline:
      EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
      return;
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
}

void Simulation::CheckQueue() {
  int64_t num_places = 0;
  int64_t num_tokens = 0;
  for (const size_t i : live_) {
    if (clients_[i].progress != Progress::kTokenizing) continue;
    ++num_places;
    num_tokens += static_cast<int64_t>(request(i).prompt.size());
  }
  // Places are taken by who tokenizes and by who has not begun to run.
  EXPECT_EQ(num_places + NumSubmittedAndNotStarted(),
            loop_.queue().num_waiting());
  EXPECT_LE(num_tokens, loop_.queue().num_waiting_tokens());
  if (scenario_.limits.max_waiting_requests > 0) {
    EXPECT_LE(loop_.queue().num_waiting(),
              scenario_.limits.max_waiting_requests);
  }
}

int Simulation::NumSubmittedAndNotStarted() const {
  if (!loop_.status().status().ok()) return 0;
  return num_submitted_ +
         SchedulerTestPeer::NumNotStarted(SchedulerTestPeer::scheduler(loop_));
}

// The loop has nothing to do.
void Simulation::CheckIdle() {
  const Scheduler& scheduler = SchedulerTestPeer::scheduler(loop_);
  EXPECT_TRUE(scheduler.empty() || !loop_.status().status().ok())
      << "requests wait, and nothing is computed";
  EXPECT_TRUE(scheduler.num_steps_in_flight() == 0 ||
              !loop_.status().status().ok());
}

void Simulation::CheckEnd(size_t client, int sample) {
  SCOPED_TRACE("client " + std::to_string(client) + " sample " +
               std::to_string(sample));
  const Request& asked = request(client);
  const SampleSeen& seen =
      clients_[client].samples[static_cast<size_t>(sample)];
  ASSERT_TRUE(seen.finish.has_value()) << "it has no end";
  const Finish& finish = *seen.finish;

  const ReferenceOutput reference = FakeReference(asked, sample);
  ASSERT_LE(seen.tokens.size(), reference.tokens.size());
  EXPECT_TRUE(std::equal(seen.tokens.begin(), seen.tokens.end(),
                         reference.tokens.begin()))
      << "its tokens are not the model's";
  CheckLogprobs(asked, sample, seen);
  const bool whole = seen.tokens.size() == reference.tokens.size();
  const int num_tokens = static_cast<int>(seen.tokens.size());
  EXPECT_LT(finish.num_cached_tokens, std::ssize(asked.prompt));

  const RequestTimes& times = finish.times;
  MonotonicTime last = asked.arrival;
  for (const auto& time :
       {times.first_scheduled, times.first_token, times.last_token}) {
    if (!time) continue;
    EXPECT_LE(last, *time);
    last = *time;
  }
  const int stop =
      scenario_.clients[client].stops_with.empty()
          ? 0
          : scenario_.clients[client].stops_with[static_cast<size_t>(sample)];
  switch (finish.reason) {
    case FinishReason::kEos:
    case FinishReason::kStopToken:
      EXPECT_EQ(finish.matched_token, seen.tokens.back());
      [[fallthrough]];
    case FinishReason::kLength:
      EXPECT_EQ(finish.reason, reference.reason);
      EXPECT_TRUE(whole);
      EXPECT_EQ(finish.num_output_tokens, num_tokens);
      break;
    case FinishReason::kStopString:
      EXPECT_TRUE(clients_[client].stopped[static_cast<size_t>(sample)]);
      EXPECT_EQ(finish.num_output_tokens, stop);
      EXPECT_GE(num_tokens, stop);
      if (clients_[client].stopped_ahead[static_cast<size_t>(sample)] &&
          scenario_.clients[client].reading_pause == Duration(0)) {
        EXPECT_EQ(num_tokens, stop) << "it was known where it ends";
      }
      break;
    case FinishReason::kCancelled:
      EXPECT_TRUE(clients_[client].left.has_value());
      break;
    case FinishReason::kDeadline:
      CheckDeadline(client, finish.times.finished);
      break;
    case FinishReason::kError:
      CheckError(asked, finish, reference, whole);
      break;
  }
}

void Simulation::CheckLogprobs(const Request& asked, int sample,
                               const SampleSeen& seen) {
  for (size_t i = 0; i < seen.tokens.size(); ++i) {
    if (asked.num_logprobs < 0) break;
    EXPECT_EQ(seen.logprobs[i].chosen.token, seen.tokens[i]);
  }
  if (seen.tokens.empty() || asked.num_prompt_logprobs < 0 || sample > 0) {
    EXPECT_TRUE(seen.prompt_logprobs.empty());
    return;
  }
  ASSERT_EQ(seen.prompt_logprobs.size(), asked.prompt.size() - 1);
  uint64_t state = 0;
  for (size_t i = 0; i < seen.prompt_logprobs.size(); ++i) {
    state = FakeState(state, asked.prompt[i]);
    const TokenId token = asked.prompt[i + 1];
    const TokenLogprob& chosen = seen.prompt_logprobs[i].chosen;
    EXPECT_EQ(chosen.token, token);
    EXPECT_EQ(chosen.logprob, FakeLogprob(state, token));
  }
}

// One of the limits had passed, and what it is a limit of had not come.
void Simulation::CheckDeadline(size_t client, MonotonicTime end) {
  const auto passed = [end](std::optional<MonotonicTime> limit) {
    return limit && *limit <= end;
  };
  bool has_begun = false;
  bool has_token = false;
  for (const SampleSeen& seen : clients_[client].samples) {
    has_begun |= seen.finish && seen.finish->times.first_scheduled.has_value();
    has_token |= !seen.tokens.empty();
  }
  EXPECT_TRUE(passed(request(client).deadline) ||
              (passed(request(client).first_token_deadline) && !has_token) ||
              (passed(request(client).queue_deadline) && !has_begun))
      << "it ended before any of its limits of time";
}

void Simulation::CheckError(const Request& asked, const Finish& finish,
                            const ReferenceOutput& reference, bool whole) {
  const CacheConfig& cache = scenario_.options.cache;
  if (finish.status.message() == "submit" ||
      finish.status.message() == "wait") {
    EXPECT_TRUE(failed_on_purpose());
  } else if (finish.status.code() == absl::StatusCode::kUnavailable) {
    EXPECT_TRUE(closed_ || failed_on_purpose()) << finish.status;
  } else if (finish.status.code() == absl::StatusCode::kInternal) {
    EXPECT_EQ(reference.reason, FinishReason::kError) << finish.status;
    EXPECT_TRUE(whole);
  } else {
    EXPECT_EQ(finish.status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_GT(static_cast<int>(asked.prompt.size()) +
                  std::max(1, finish.num_output_tokens),
              cache.num_blocks * cache.block_size);
  }
}

}  // namespace binarymos
