// Decides what every step computes, and what its results mean.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "engine/api/batch_plan.h"
#include "engine/api/model_runner.h"
#include "engine/api/types.h"
#include "scheduler/fair_share.h"
#include "scheduler/kv_cache_manager.h"
#include "scheduler/request.h"
#include "scheduler/scheduler_stats.h"
#include "scheduler/sequence.h"
#include "scheduler/token_stream.h"
#include "scheduler/waiting_queue.h"

namespace binarymos {

struct SchedulerOptions {
  CacheConfig cache;
  // Share the blocks of equal prefixes (of one tenant).
  bool prefix_caching = true;
  // Most tokens of one sequence in one step, so that a long prompt leaves room
  // for others. 0: no limit but the budget.
  int long_prefill_token_threshold = 0;
  // Share of the blocks, in [0, 1), that admission leaves free for those that
  // run to grow into; without it, what is admitted is soon preempted.
  double watermark = 0.01;
};

// An event on its way to `request->stream`.
struct StreamEvent {
  std::shared_ptr<const Request> request;
  TokenEvent event;
  bool request_ended = false;  // this was the last sample to end
};

// Something to tell the runner before the plan is submitted.
struct SlotOperation {
  enum class Kind { kAdd, kRemove };
  Kind kind = Kind::kRemove;
  SlotId slot = kNoSlot;
  SequenceInit init;  // of kAdd; valid until the next Schedule or Commit
};

// Continuous batching. Pure: no threads, clocks or I/O; the time is an
// argument. Confined to the serving-loop thread.
//
// A step gives every running sequence the tokens it has left to compute, within
// the token budget and in the order of RunsBefore(), then admits waiting ones
// in the order of WaitingQueue. A sequence that needs a block when there is
// none makes the last running one give up its blocks; the victim keeps its
// place and computes again later. A sequence whose next block another one is
// about to compute waits to find it in the cache.
//
// Steps may run ahead of their results: Schedule counts what it plans as
// computed, and a row may refer to a token that is not known yet. What a step
// in flight uses (blocks, slots) is not given to anybody else before its
// Commit.
class Scheduler {
 public:
  // Schedules that may wait for their Commit at the same time.
  static constexpr int kMaxStepsInFlight = 2;

  explicit Scheduler(const SchedulerOptions& options);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // --- Commands. The events they cause are in TakeEvents. ---

  // Queues the samples of a request. One that can never fit the cache ends at
  // once with RESOURCE_EXHAUSTED. REQUIRES: its id is new.
  void Add(std::shared_ptr<const Request> request, MonotonicTime now);

  // Ends all samples of a request with `status`: kCancelled for CANCELLED,
  // kDeadline for DEADLINE_EXCEEDED, else kError. Unknown or ended: no effect.
  void Abort(RequestId id, const absl::Status& status, MonotonicTime now);
  void AbortAll(const absl::Status& status, MonotonicTime now);

  // A sample ends after its first `num_tokens` output tokens with kStopString,
  // now if it has as many. Unknown or ended: no effect.
  void StopAt(RequestId id, int sample, int num_tokens, MonotonicTime now);

  // Forgets cached prefixes that no sequence uses.
  void FlushPrefixCache() { kv_.Flush(); }

  // --- Steps ---

  // Ends what is past a limit of time and plans a step; an empty plan has no
  // Commit. The plan is valid until the next Schedule or Commit.
  // REQUIRES: fewer than kMaxStepsInFlight plans wait for their Commit.
  const BatchPlan& Schedule(MonotonicTime now);
  // Of the last Schedule: to be carried out in this order before the plan is
  // submitted, or even if it is empty.
  std::span<const SlotOperation> slot_operations() const { return slot_ops_; }
  // Requests of which a sample was scheduled for the first time by the last
  // Schedule.
  std::span<const RequestId> started_requests() const { return started_; }

  // Takes the result of the oldest plan without one.
  void Commit(const StepResult& result, MonotonicTime now);

  // Moves the events since the last call to the end of `events`, in order.
  void TakeEvents(std::vector<StreamEvent>& events);

  // --- Facts ---

  bool empty() const { return requests_.empty(); }  // nobody waits for tokens
  int num_steps_in_flight() const { return num_in_flight_; }
  std::optional<MonotonicTime> next_deadline() const;
  const SchedulerStats& stats() const { return stats_; }  // up to date

 private:
  friend class SchedulerTestPeer;
  using State = SequencePlace::State;

  struct RequestState {
    std::shared_ptr<const Request> request;
    std::vector<Sequence> samples;  // addresses do not change
    int num_unfinished = 0;
    bool started = false;
  };

  // What a request must have reached in time.
  enum class Stage { kStart, kFirstToken, kEnd };
  static constexpr std::array kStages = {Stage::kStart, Stage::kFirstToken,
                                         Stage::kEnd};
  struct Deadline {
    MonotonicTime time;
    RequestId id = 0;
    Stage stage = Stage::kEnd;

    auto operator<=>(const Deadline&) const = default;
  };

  struct RowInFlight {
    Sequence* seq = nullptr;
    int first_position = 0;
    int num_tokens = 0;
    bool sample = false;
  };
  struct StepInFlight {
    StepId step = kNoStep;
    std::vector<RowInFlight> rows;  // same order as BatchPlan::rows
  };

  // Parts of Schedule.
  void ForgetEndedRequests();
  void EndExpired(MonotonicTime now);
  static const char* Late(Stage stage);
  static std::optional<MonotonicTime> DeadlineOf(const Request& request,
                                                 Stage stage);
  void AddDeadlines(const Request& request);
  // It has reached `stage`.
  void EraseDeadline(const Request& request, Stage stage);
  void MakeWay();
  bool TakeBack(const Sequence& seq, int num_wanted, int num_missing,
                int (*size)(const Sequence&));
  Sequence* LastOfWhoHasMost(const Sequence& seq, int num_wanted,
                             int (*size)(const Sequence&));
  void ScheduleRunning(MonotonicTime now);
  bool MakeRoom(Sequence& seq, int num_tokens);
  void ScheduleWaiting(MonotonicTime now);
  int NumToKeepFree() const;
  bool HasRoomToAdmit() const;
  void CollectPrefilling();
  std::optional<int> ProbeWaiting(Sequence& seq);
  bool Admit(Sequence& seq, MonotonicTime now);
  void AddRow(Sequence& seq, int num_tokens);
  void Charge(Sequence& seq, int num_tokens, bool sample);
  int CapTokens(int num_tokens) const;
  void Preempt(Sequence& seq);

  // Parts of Commit.
  void CommitRow(const RowInFlight& planned, const StepResultRow& row,
                 MonotonicTime now);
  void TakePromptLogprobs(const RowInFlight& planned, const StepResultRow& row);
  void CountStep(const StepInFlight& step, const StepStats& stats);

  bool NeverFits(int num_tokens) const;
  void EndTooLong(Sequence& seq, MonotonicTime now);
  bool WantsPromptLogprobs(const Sequence& seq) const;
  StreamEvent& Emit(Sequence& seq);
  // Ends a sample with an event of its own, or with `event` of its last token.
  void End(Sequence& seq, FinishReason reason, absl::Status status,
           MonotonicTime now);
  void End(Sequence& seq, FinishReason reason, absl::Status status,
           MonotonicTime now, StreamEvent& event);
  void ReleaseOrHold(Sequence& seq);
  void Release(Sequence& seq);
  void UpdateGauges();

  const SchedulerOptions options_;
  const int watermark_blocks_;
  KvCacheManager kv_;

  absl::flat_hash_map<RequestId, std::unique_ptr<RequestState>> requests_;
  // Ended, kept while a row in flight or a slot operation refers to them.
  std::vector<std::unique_ptr<RequestState>> ended_;
  absl::btree_set<Deadline> deadlines_;  // not yet reached

  std::vector<Sequence*> running_;  // in the order of RunsBefore()
  FairShare shares_;                // with a credit of one step
  WaitingQueue waiting_{shares_};
  int64_t next_order_ = 0;  // SequencePlace::order
  std::vector<SlotId> free_slots_;
  int num_held_ = 0;         // sequences with SequencePlace::held
  int num_held_blocks_ = 0;  // that they still use

  StepId next_step_ = 0;
  std::array<StepInFlight, kMaxStepsInFlight> in_flight_;  // ring
  int first_in_flight_ = 0;
  int num_in_flight_ = 0;

  // The plan being made.
  BatchPlan plan_;
  std::vector<SlotOperation> slot_ops_;
  std::vector<SlotOperation> next_slot_ops_;  // since the last Schedule
  std::vector<RequestId> started_;
  std::vector<Sequence*> prefilling_;  // run, and have tokens left to compute
  std::vector<Sequence*> victims_;     // of TakeBack
  int64_t round_ = 0;                  // of WaitingQueue::Next
  int budget_ = 0;
  bool short_of_blocks_ = false;

  std::vector<StreamEvent> events_;
  SchedulerStats stats_;
};

}  // namespace binarymos
