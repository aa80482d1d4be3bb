// Two tenants of which one floods the server.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/simulation/random.h"
#include "tests/simulation/simulation.h"

namespace binarymos {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

// A server with the default limits, or `part` of it.
Scenario Server(double part = 1) {
  Scenario scenario;
  CacheConfig& cache = scenario.options.cache;
  cache.block_size = 16;
  cache.max_model_len = 512;
  cache.max_num_seqs = static_cast<int>(64 * part);
  cache.num_blocks = static_cast<int>(1600 * part);
  cache.max_num_batched_tokens = static_cast<int>(2048 * part);
  scenario.limits.max_waiting_requests = 0;
  scenario.limits.max_waiting_requests_per_tenant = 100;
  scenario.max_steps_in_flight = 2;
  // Half of the server is half as fast.
  scenario.cost = {.fixed = milliseconds(2),
                   .per_token = microseconds(static_cast<int>(10 / part)),
                   .per_row = microseconds(static_cast<int>(20 / part))};
  return scenario;
}

// Requests `interval` apart on average, the same of a tenant whatever others
// do.
void AddTenant(const std::string& tenant, int num_requests, Duration interval,
               Scenario& scenario) {
  Random random(tenant.size());
  MonotonicTime time = kBeginning;
  for (int i = 0; i < num_requests; ++i) {
    time += random.Exponential(interval);
    auto request = std::make_shared<Request>();
    request->id = scenario.clients.size() + 1;
    request->tenant = tenant;
    request->arrival = time;
    const int length = std::clamp(random.LogNormal(60, 0.7), 1, 300);
    for (int k = 0; k < length; ++k) {
      request->prompt.push_back(random.Int(0, 10'000));
    }
    request->max_tokens = std::clamp(random.LogNormal(40, 0.5), 1, 200);
    scenario.clients.push_back({.request = std::move(request)});
  }
  std::stable_sort(scenario.clients.begin(), scenario.clients.end(),
                   [](const SimulatedClient& a, const SimulatedClient& b) {
                     return a.request->arrival < b.request->arrival;
                   });
}

Duration P99TimeToFirstToken(const Simulation& simulation,
                             const std::string& tenant) {
  std::vector<Duration> times;
  for (size_t i = 0; i < simulation.clients().size(); ++i) {
    const Request& request = *simulation.scenario().clients[i].request;
    if (request.tenant != tenant) continue;
    EXPECT_EQ(simulation.clients()[i].num_ended, 1);
    const Finish& finish = *simulation.clients()[i].samples[0].finish;
    times.push_back(*finish.times.first_token - request.arrival);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() * 99 / 100];
}

TEST(FairnessTest, TenantsThatKeepWaitingHaveEqualShares) {
  Scenario scenario = Server();
  AddTenant("a", 300, milliseconds(2), scenario);
  AddTenant("flood", 3000, microseconds(200), scenario);
  Simulation simulation(std::move(scenario));
  int64_t a = 0;
  int64_t flood = 0;
  simulation.on_turn = [&] {
    const auto& waiting = simulation.order().num_waiting();
    if (!waiting.contains("a")) return;
    a = simulation.order().service().at("a");
    flood = simulation.order().service().at("flood");
  };
  simulation.Run();
  ASSERT_GT(a, 10'000);
  EXPECT_NEAR(static_cast<double>(a) / static_cast<double>(a + flood), 0.5,
              0.05);
}

TEST(FairnessTest, FloodOfOneTenantDelaysTheOtherLittle) {
  // Half of the server would be busy for about 60 % of the time.
  constexpr int kNumRequests = 300;
  const Duration interval = milliseconds(9);
  Scenario alone = Server(0.5);
  AddTenant("a", kNumRequests, interval, alone);
  Scenario together = Server();
  AddTenant("a", kNumRequests, interval, together);
  AddTenant("flood", 10 * kNumRequests, interval / 10, together);
  Simulation first(std::move(alone));
  first.Run();
  Simulation second(std::move(together));
  second.Run();
  const Duration with_half = P99TimeToFirstToken(first, "a");
  const Duration beside = P99TimeToFirstToken(second, "a");
  const auto seconds = [](Duration duration) {
    return std::chrono::duration<double>(duration).count();
  };
  EXPECT_LE(seconds(beside), 2 * seconds(with_half));
}

}  // namespace
}  // namespace binarymos
