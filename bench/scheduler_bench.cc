#include "bench/scheduler_bench.h"

#include <chrono>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/workload.h"
#include "engine/core/check.h"
#include "scheduler/scheduler.h"

namespace binarymos {
namespace {

constexpr int kPromptTokens = 64;

std::shared_ptr<const Request> MakeRequest(RequestId id, int max_tokens) {
  auto request = std::make_shared<Request>();
  request->id = id;
  request->external_id = absl::StrCat("bench-", id);
  const Workload workload{.prompt_tokens = kPromptTokens};
  request->prompt = PromptTokens(workload, static_cast<int>(id), 32'000);
  request->max_tokens = max_tokens;
  request->stream = std::make_shared<TokenStream>([] {});
  return request;
}

// What a runner would answer: some token for every row that samples.
void Answer(const BatchPlan& plan, StepResult& result) {
  result.step = plan.step;
  result.rows.resize(plan.rows.size());
  for (size_t i = 0; i < plan.rows.size(); ++i) {
    result.rows[i].slot = plan.rows[i].slot;
    result.rows[i].token = plan.rows[i].sample ? 1000 : kNoToken;
  }
}

SchedulerOptions OptionsFor(int num_running, int max_model_len) {
  SchedulerOptions options;
  options.cache.max_num_seqs = num_running;
  options.cache.max_model_len = max_model_len;
  options.cache.max_num_batched_tokens = 8192;
  options.cache.num_blocks =
      (num_running + 1) * (max_model_len / kBlockSize + 1);
  return options;
}

}  // namespace

SchedulerBenchRow BenchScheduler(int num_running, int num_waiting,
                                 int num_steps) {
  // Prompts are computed in the first steps, which are not measured.
  const int num_warm_up = num_running * kPromptTokens / 8192 + 32;
  const int max_tokens = num_steps + num_warm_up + 1;
  Scheduler scheduler(OptionsFor(num_running, kPromptTokens + max_tokens));
  const MonotonicTime now{};
  for (int i = 0; i < num_running + num_waiting; ++i) {
    scheduler.Add(MakeRequest(i + 1, max_tokens), now);
  }

  StepResult result;
  std::vector<StreamEvent> events;
  std::vector<double> microseconds;
  for (int step = 0; step < num_warm_up + num_steps; ++step) {
    const auto begin = std::chrono::steady_clock::now();
    const BatchPlan& plan = scheduler.Schedule(now);
    const auto planned = std::chrono::steady_clock::now();
    Answer(plan, result);
    const auto answered = std::chrono::steady_clock::now();
    scheduler.Commit(result, now);
    events.clear();
    scheduler.TakeEvents(events);
    const auto end = std::chrono::steady_clock::now();
    if (step < num_warm_up) continue;
    BINARYMOS_CHECK_EQ(scheduler.stats().num_running, num_running);
    microseconds.push_back(std::chrono::duration<double, std::micro>(
                               (planned - begin) + (end - answered))
                               .count());
  }
  return {num_running, num_waiting, num_steps, Quantile(microseconds, 0.5),
          Quantile(microseconds, 0.99)};
}

}  // namespace binarymos
