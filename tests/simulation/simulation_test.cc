// Random scenarios against everything that must always hold. A failure prints
// the seed; BINARYMOS_SEED=<n> runs that one alone, BINARYMOS_SEEDS=<n> runs so
// many, from BINARYMOS_FIRST_SEED=<n> on.
#include "tests/simulation/simulation.h"

#include <cstdlib>
#include <map>
#include <string>

#include "gtest/gtest.h"
#include "tests/simulation/sanitized.h"

namespace binarymos {
namespace {

// One thread runs all: a sanitizer finds in few what it finds in many.
constexpr uint64_t kNumSeeds = kSanitized ? 40 : 600;

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::stoull(value);
}

// What the seeds together must have brought about.
struct Coverage {
  int64_t num_preemptions = 0;
  int64_t num_cached_tokens = 0;
  std::map<QueueRefusal::Reason, int> refusals;
  int num_failed_devices = 0;
  int num_outgrown = 0;  // sequences that the cache had no room for
  std::map<FinishReason, int> reasons;

  void Add(const Simulation& simulation) {
    num_preemptions += simulation.stats().num_preemptions;
    num_cached_tokens += simulation.stats().num_cache_hit_tokens;
    bool failed = false;
    for (const ClientSeen& client : simulation.clients()) {
      if (client.progress == ClientSeen::Progress::kRefused) {
        ++refusals[client.refusal.reason];
      }
      for (const SampleSeen& sample : client.samples) {
        if (!sample.finish) continue;
        ++reasons[sample.finish->reason];
        num_outgrown += sample.finish->status.code() ==
                        absl::StatusCode::kResourceExhausted;
        failed |= sample.finish->status.message() == "submit" ||
                  sample.finish->status.message() == "wait";
      }
    }
    num_failed_devices += failed;
  }
};

TEST(SimulationTest, HoldsForRandomScenarios) {
  const uint64_t only = FromEnvironment("BINARYMOS_SEED", UINT64_MAX);
  const uint64_t first =
      only != UINT64_MAX ? only : FromEnvironment("BINARYMOS_FIRST_SEED", 0);
  const uint64_t num_seeds =
      only != UINT64_MAX ? 1 : FromEnvironment("BINARYMOS_SEEDS", kNumSeeds);
  Coverage coverage;
  for (uint64_t seed = first; seed < first + num_seeds; ++seed) {
    SCOPED_TRACE("BINARYMOS_SEED=" + std::to_string(seed));
    Simulation simulation(RandomScenario(seed));
    simulation.Run();
    ASSERT_FALSE(HasFailure()) << "BINARYMOS_SEED=" << seed;
    coverage.Add(simulation);
  }
  if (num_seeds < 200) return;
  EXPECT_GT(coverage.num_preemptions, 100);
  EXPECT_GT(coverage.num_cached_tokens, 1000);
  EXPECT_EQ(coverage.refusals.size(), 7u) << "a refusal was never seen";
  EXPECT_GT(coverage.num_failed_devices, 5);
  EXPECT_GT(coverage.num_outgrown, 10);
  EXPECT_EQ(coverage.reasons.size(), 7u) << "a way to end was never seen";
}

}  // namespace
}  // namespace binarymos
