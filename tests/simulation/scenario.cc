#include "tests/simulation/scenario.h"

#include <algorithm>
#include <chrono>
#include <string>

#include "tests/simulation/random.h"

namespace binarymos {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

SchedulerOptions RandomOptions(Random& random) {
  SchedulerOptions options;
  CacheConfig& cache = options.cache;
  cache.block_size = random.Choice({1, 4, 16});
  cache.max_model_len = random.Int(40, 160);
  // From far too few blocks to plenty.
  const int blocks_of_one = cache.max_model_len / cache.block_size;
  cache.num_blocks = std::max(
      1, blocks_of_one * random.Choice({50, 100, 200, 400, 1000}) / 100);
  cache.max_num_seqs = random.Int(1, 9);
  cache.max_num_batched_tokens = random.Choice({1, 7, 16, 64, 512});
  options.prefix_caching = random.Chance(75);
  options.long_prefill_token_threshold = random.Choice({0, 0, 1, 5, 17});
  options.watermark = random.Choice({0.0, 0.01, 0.25});
  return options;
}

QueueLimits RandomLimits(Random& random) {
  QueueLimits limits;
  limits.max_waiting_requests = random.Choice({0, 0, 3, 10});
  limits.max_waiting_tokens = random.Choice({0, 0, 300});
  limits.max_waiting_requests_per_tenant = random.Choice({0, 0, 4});
  limits.max_waiting_tokens_per_tenant = random.Choice({0, 0, 200});
  limits.max_estimated_wait = milliseconds(random.Choice({0, 0, 0, 30}));
  return limits;
}

// Where requests come from: one program, with habits.
struct Source {
  std::string tenant;
  Duration interval{0};  // mean time between arrivals, or between bursts
  int burst = 1;
  int family = 0;  // of prompts with a common beginning
  int common_percent = 0;
  double prompt_median = 0;
  double output_median = 0;
};

Source RandomSource(Random& random, const CacheConfig& cache) {
  Source source;
  source.tenant = random.Choice({"", "a", "b", "c"});
  source.interval = milliseconds(random.Choice({1, 5, 20, 100}));
  source.burst = random.Choice({1, 1, 3, 10});
  source.family = random.Int(0, 2);
  source.common_percent = random.Choice({0, 30, 80});
  source.prompt_median = random.Int(2, cache.max_model_len / 2);
  source.output_median = random.Int(2, cache.max_model_len / 3);
  return source;
}

std::vector<TokenId> RandomPrompt(Random& random, const Source& source,
                                  int length) {
  std::vector<TokenId> prompt;
  const int num_common = length * source.common_percent / 100;
  for (int i = 0; i < length; ++i) {
    prompt.push_back(i < num_common ? source.family * 1000 + i
                                    : random.Int(0, 5));
  }
  return prompt;
}

void SetLimitsOfTime(Random& random, Request& request) {
  const auto some_time = [&] {
    return request.arrival + random.Int(0, 100) * milliseconds(1);
  };
  if (random.Chance(15)) request.deadline = some_time();
  if (random.Chance(10)) request.queue_deadline = some_time();
  if (random.Chance(10)) request.first_token_deadline = some_time();
}

std::shared_ptr<Request> RandomRequest(Random& random, const Source& source,
                                       RequestId id, MonotonicTime arrival,
                                       const Scenario& scenario) {
  const int max_model_len = scenario.options.cache.max_model_len;
  auto request = std::make_shared<Request>();
  request->id = id;
  request->tenant = source.tenant;
  request->arrival = arrival;
  if (scenario.has_priorities) {
    request->priority = random.Choice({0, 0, 0, -1, 3});
  }
  const int length = std::clamp(random.LogNormal(source.prompt_median, 0.8), 1,
                                max_model_len - 1);
  request->prompt = RandomPrompt(random, source, length);
  request->max_tokens = std::clamp(random.LogNormal(source.output_median, 0.8),
                                   1, max_model_len - length);
  request->num_samples = random.Choice({1, 1, 1, 1, 2, 5});
  request->sampling.seed = random.Chance(3) ? kPoisonedSeed : id;
  if (random.Chance(30)) request->eos_tokens = {random.Int(0, 96), 17};
  if (random.Chance(20)) request->stop_tokens = {random.Int(0, 96)};
  request->sampling.min_tokens = random.Choice({0, 0, 4, 12});
  request->sampling.suppressed_tokens = request->eos_tokens;
  request->sampling.suppressed_tokens.insert(
      request->sampling.suppressed_tokens.end(), request->stop_tokens.begin(),
      request->stop_tokens.end());
  if (random.Chance(10)) request->num_logprobs = random.Int(0, 3);
  if (random.Chance(10)) request->num_prompt_logprobs = 0;
  SetLimitsOfTime(random, *request);
  return request;
}

SimulatedClient RandomClient(Random& random, std::shared_ptr<Request> request) {
  SimulatedClient client;
  if (random.Chance(50)) client.tokenizing = microseconds(random.Int(0, 5000));
  if (random.Chance(20)) client.reading_pause = milliseconds(random.Int(1, 20));
  if (random.Chance(8)) {
    client.leaves_at = request->arrival + random.Int(0, 200) * milliseconds(1);
  }
  if (random.Chance(8)) {
    client.leaves_with = random.Int(0, request->max_tokens);
  }
  client.stops_with.resize(static_cast<size_t>(request->num_samples));
  for (int& stop : client.stops_with) {
    if (random.Chance(15)) stop = random.Int(1, request->max_tokens);
  }
  client.asks_ahead = random.Choice({0, 0, 1, 4});
  client.request = std::move(request);
  return client;
}

void AddClients(Random& random, Scenario& scenario) {
  const int num_clients = random.Int(1, 40);
  const int num_sources = random.Int(1, 4);
  std::vector<MonotonicTime> arrivals;
  std::vector<Source> sources;
  for (int i = 0; i < num_sources; ++i) {
    sources.push_back(RandomSource(random, scenario.options.cache));
    scenario.shares_prefixes |= sources.back().common_percent > 0;
    MonotonicTime time = kBeginning;
    const int share = std::max(1, num_clients / num_sources);
    for (int n = 0; n < share; ++n) {
      const Source& source = sources.back();
      if (n % source.burst == 0) time += random.Exponential(source.interval);
      // Numbered below, in the order of arrival.
      scenario.clients.push_back(RandomClient(
          random, RandomRequest(random, source, 0, time, scenario)));
    }
  }
  std::stable_sort(scenario.clients.begin(), scenario.clients.end(),
                   [](const SimulatedClient& a, const SimulatedClient& b) {
                     return a.request->arrival < b.request->arrival;
                   });
  RequestId id = 0;
  for (SimulatedClient& client : scenario.clients) {
    client.request->id = ++id;
    if (client.request->sampling.seed != kPoisonedSeed) {
      client.request->sampling.seed = id;
    }
  }
}

void AddOperators(Random& random, Scenario& scenario) {
  const auto some_time = [&] {
    return kBeginning + random.Int(0, 500) * milliseconds(1);
  };
  if (random.Chance(10)) scenario.flushes = {some_time(), some_time()};
  if (random.Chance(3)) scenario.closes_at = some_time();
  if (random.Chance(3)) scenario.aborts_all_at = some_time();
  if (random.Chance(3)) scenario.fail_submit_at = random.Int(0, 100);
  if (random.Chance(3)) scenario.fail_wait_at = random.Int(0, 100);
}

}  // namespace

Scenario RandomScenario(uint64_t seed) {
  Random random(seed);
  Scenario scenario;
  scenario.options = RandomOptions(random);
  scenario.limits = RandomLimits(random);
  scenario.max_steps_in_flight = random.Int(1, 2);
  scenario.cost = {.fixed = microseconds(random.Choice({100, 2000})),
                   .per_token = microseconds(random.Choice({1, 50})),
                   .per_row = microseconds(10)};
  scenario.has_priorities = random.Chance(40);
  AddClients(random, scenario);
  AddOperators(random, scenario);
  return scenario;
}

}  // namespace binarymos
