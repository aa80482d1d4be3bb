// Clients that leave in the middle, and a cache that is far too small.
// BINARYMOS_DISCONNECTS=10000 makes it long.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>

#include "gtest/gtest.h"
#include "tests/simulation/random.h"
#include "tests/simulation/sanitized.h"
#include "tests/simulation/simulation.h"

namespace binarymos {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr int kPromptTokens = 40;
constexpr int kOutputTokens = 60;

int NumDisconnects() {
  const char* value = std::getenv("BINARYMOS_DISCONNECTS");
  if (value != nullptr) return std::stoi(value);
  return kSanitized ? 200 : 1000;
}

// A quarter of the blocks that 32 sequences need, for as many clients as asked
// for, each a little after the other.
Scenario SmallCache(int num_clients, int max_steps_in_flight) {
  Scenario scenario;
  CacheConfig& cache = scenario.options.cache;
  cache.block_size = 4;
  cache.max_model_len = kPromptTokens + kOutputTokens;
  cache.max_num_seqs = 32;
  cache.num_blocks =
      cache.max_num_seqs * cache.max_model_len / cache.block_size / 4;
  cache.max_num_batched_tokens = 128;
  scenario.limits.max_waiting_requests = 0;
  scenario.max_steps_in_flight = max_steps_in_flight;
  scenario.cost = {.fixed = milliseconds(1), .per_token = microseconds(10)};
  Random random(7);
  MonotonicTime time = kBeginning;
  for (int i = 0; i < num_clients; ++i) {
    time += random.Exponential(microseconds(1500));
    auto request = std::make_shared<Request>();
    request->id = static_cast<RequestId>(i + 1);
    request->arrival = time;
    request->tenant = random.Choice({"", "a", "b"});
    request->prompt.assign(static_cast<size_t>(random.Int(1, kPromptTokens)),
                           random.Int(0, 3));
    request->max_tokens = random.Int(1, kOutputTokens);
    request->sampling.seed = request->id + 1'000'000;
    scenario.clients.push_back({.request = std::move(request)});
  }
  return scenario;
}

// Counts ends, all of which Simulation has checked.
int NumEnds(const Simulation& simulation, FinishReason reason) {
  int count = 0;
  for (const ClientSeen& client : simulation.clients()) {
    count += client.samples[0].finish->reason == reason;
  }
  return count;
}

class DisturbanceTest : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Depth, DisturbanceTest, ::testing::Values(1, 2));

TEST_P(DisturbanceTest, DisconnectsAtRandomTokensLeaveNothingBehind) {
  const int num_disconnects = NumDisconnects();
  Scenario scenario = SmallCache(2 * num_disconnects, GetParam());
  Random random(8);
  for (size_t i = 0; i < scenario.clients.size(); i += 2) {
    SimulatedClient& client = scenario.clients[i];
    client.leaves_with = random.Int(0, client.request->max_tokens - 1);
  }
  Simulation simulation(std::move(scenario));
  simulation.Run();
  EXPECT_EQ(NumEnds(simulation, FinishReason::kLength) +
                NumEnds(simulation, FinishReason::kCancelled),
            2 * num_disconnects);
  EXPECT_GT(NumEnds(simulation, FinishReason::kCancelled),
            num_disconnects * 3 / 4);
  EXPECT_GT(simulation.stats().num_preemptions, num_disconnects / 100);
}

TEST_P(DisturbanceTest, DeadlinesLeaveNothingBehind) {
  const int num_deadlines = NumDisconnects() / 10;
  Scenario scenario = SmallCache(2 * num_deadlines, GetParam());
  Random random(9);
  for (size_t i = 0; i < scenario.clients.size(); i += 2) {
    Request& request = *scenario.clients[i].request;
    request.deadline = request.arrival + random.Exponential(milliseconds(40));
  }
  Simulation simulation(std::move(scenario));
  simulation.Run();
  EXPECT_GT(NumEnds(simulation, FinishReason::kDeadline), num_deadlines / 4);
  EXPECT_GE(NumEnds(simulation, FinishReason::kLength), num_deadlines);
}

}  // namespace
}  // namespace binarymos
