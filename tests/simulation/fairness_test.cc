// Two tenants of which one floods the server.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/simulation/random.h"
#include "tests/simulation/sanitized.h"
#include "tests/simulation/simulation.h"

namespace binarymos {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

// What a tenant asks for.
struct Load {
  std::string tenant;
  int num_requests = 0;
  Duration interval{0};  // between requests, on average
  double prompt_median = 60;
  double output_median = 40;
  MonotonicTime begins = kBeginning;
};

// A server with the default limits, or `part` of it.
Scenario Server(double part = 1) {
  Scenario scenario;
  CacheConfig& cache = scenario.options.cache;
  cache.block_size = 16;
  cache.max_model_len = 4096;
  cache.max_num_seqs = static_cast<int>(64 * part);
  cache.num_blocks = static_cast<int>(1600 * part);
  cache.max_num_batched_tokens = static_cast<int>(2048 * part);
  scenario.limits.max_waiting_requests = 0;
  scenario.limits.max_waiting_requests_per_tenant = 100;
  scenario.max_steps_in_flight = 2;
  scenario.check_interval = 100;
  // Half of the server is half as fast.
  scenario.cost = {.fixed = milliseconds(2),
                   .per_token = microseconds(static_cast<int>(10 / part)),
                   .per_row = microseconds(static_cast<int>(20 / part))};
  return scenario;
}

// The requests of a tenant are the same whatever others do.
void AddLoad(const Load& load, Scenario& scenario) {
  Random random(load.tenant.size());
  MonotonicTime time = load.begins;
  const auto length = [&](double median, double sigma) {
    return std::clamp(random.LogNormal(median, sigma), 1,
                      static_cast<int>(5 * median));
  };
  for (int i = 0; i < load.num_requests; ++i) {
    time += random.Exponential(load.interval);
    auto request = std::make_shared<Request>();
    request->id = scenario.clients.size() + 1;
    request->tenant = load.tenant;
    request->arrival = time;
    const int num_prompt = length(load.prompt_median, 0.7);
    for (int k = 0; k < num_prompt; ++k) {
      request->prompt.push_back(random.Int(0, 10'000));
    }
    request->max_tokens = length(load.output_median, 0.5);
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

// What tenant "a" had of what both had while both waited: from the first time
// that they did to the last.
double ShareOfA(Simulation& simulation, const std::string& other) {
  std::optional<std::pair<int64_t, int64_t>> first;
  int64_t a = 0;
  int64_t b = 0;
  simulation.on_turn = [&] {
    const auto& waiting = simulation.order().num_waiting();
    if (!waiting.contains("a") || !waiting.contains(other)) return;
    const auto service = [&](const std::string& tenant) -> int64_t {
      const auto found = simulation.order().service().find(tenant);
      return found == simulation.order().service().end() ? 0 : found->second;
    };
    if (!first) first = {service("a"), service(other)};
    a = service("a") - first->first;
    b = service(other) - first->second;
  };
  simulation.Run();
  EXPECT_GT(a, 10'000);
  return static_cast<double>(a) / static_cast<double>(a + b);
}

class FairnessTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (kSanitized) GTEST_SKIP() << "long, and other tests run the same code";
  }
};

TEST_F(FairnessTest, TenantsThatKeepWaitingHaveEqualShares) {
  Scenario scenario = Server();
  AddLoad({"a", 300, milliseconds(2)}, scenario);
  AddLoad({"flood", 3000, microseconds(200)}, scenario);
  Simulation simulation(std::move(scenario));
  EXPECT_NEAR(ShareOfA(simulation, "flood"), 0.5, 0.05);
}

TEST_F(FairnessTest, IdleTimeEarnsNoShare) {
  Scenario scenario = Server();
  AddLoad({"busy", 1500, milliseconds(2)}, scenario);
  AddLoad({.tenant = "a",
           .num_requests = 300,
           .interval = microseconds(100),
           .begins = kBeginning + std::chrono::seconds(2)},
          scenario);
  scenario.limits.max_waiting_requests_per_tenant = 0;
  Simulation simulation(std::move(scenario));
  EXPECT_NEAR(ShareOfA(simulation, "busy"), 0.5, 0.05);
}

// Equal shares are not equal numbers of slots here.
TEST_F(FairnessTest, TenantsOfDifferentHabitsDoNotTakeTurnsAtPreempting) {
  Scenario scenario = Server();
  AddLoad({"a", 300, milliseconds(2), 600, 10}, scenario);
  AddLoad({"writes", 600, milliseconds(2), 20, 100}, scenario);
  scenario.options.cache.num_blocks = 4000;
  scenario.limits.max_waiting_requests_per_tenant = 0;
  Simulation simulation(std::move(scenario));
  EXPECT_NEAR(ShareOfA(simulation, "writes"), 0.5, 0.05);
  EXPECT_LE(simulation.stats().num_preemptions, 90);
}

// Of what a flood is made that leaves too few slots, or too few blocks.
struct Flood {
  const char* name;
  double output_median = 40;
  int num_blocks = 1600;
  bool prefix_caching = true;
};

class FloodTest : public FairnessTest,
                  public ::testing::WithParamInterface<Flood> {};
INSTANTIATE_TEST_SUITE_P(
    All, FloodTest,
    ::testing::Values(Flood{.name = "Slots"},
                      Flood{.name = "SlotsWithoutPrefixCache",
                            .prefix_caching = false},
                      Flood{.name = "LongAnswers", .output_median = 200},
                      Flood{.name = "Blocks", .num_blocks = 300}),
    [](const auto& instance) { return std::string(instance.param.name); });

TEST_P(FloodTest, DelaysTheOtherTenantLittle) {
  // Half of the server would be busy for about 60 % of the time.
  const Load load = {"a", 300, milliseconds(9)};
  const auto server = [](double part) {
    Scenario scenario = Server(part);
    scenario.options.prefix_caching = GetParam().prefix_caching;
    scenario.options.cache.num_blocks =
        static_cast<int>(GetParam().num_blocks * part);
    return scenario;
  };
  Scenario alone = server(0.5);
  AddLoad(load, alone);
  Scenario together = server(1);
  AddLoad(load, together);
  AddLoad({"flood", 10 * load.num_requests, load.interval / 10, 60,
           GetParam().output_median},
          together);
  Simulation first(std::move(alone));
  first.Run();
  Simulation second(std::move(together));
  second.Run();
  const auto seconds = [](Duration duration) {
    return std::chrono::duration<double>(duration).count();
  };
  EXPECT_LE(seconds(P99TimeToFirstToken(second, "a")),
            1.5 * seconds(P99TimeToFirstToken(first, "a")));
  // No request makes more than one other give way.
  EXPECT_LE(second.stats().num_preemptions, load.num_requests);
}

}  // namespace
}  // namespace binarymos
