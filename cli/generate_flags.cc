#include "cli/generate_flags.h"

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace binarymos {
namespace {

using v1::GenerateRequest;

// A flag that calls `set` with its value if it is given.
template <typename T, typename Set>
void AddField(CLI::App& app, const char* group, const char* name,
              const char* help, Set set) {
  app.add_option_function<T>(
         name, [set](const T& value) { set(value); }, help)
      ->group(group);
}

void AddSamplingFlags(CLI::App& app, GenerateRequest* request) {
  const char* group = "Sampling (absent: the server's default)";
  AddField<float>(app, group, "--temperature", "0 is greedy", [=](float v) {
    request->mutable_sampling()->set_temperature(v);
  });
  AddField<int32_t>(
      app, group, "--top-k", "Most likely tokens only; 0: all",
      [=](int32_t v) { request->mutable_sampling()->set_top_k(v); });
  AddField<float>(app, group, "--top-p",
                  "Most likely tokens with this much probability",
                  [=](float v) { request->mutable_sampling()->set_top_p(v); });
  AddField<float>(app, group, "--min-p",
                  "Least probability relative to the likeliest",
                  [=](float v) { request->mutable_sampling()->set_min_p(v); });
  AddField<float>(app, group, "--repetition-penalty", "1 is off", [=](float v) {
    request->mutable_sampling()->set_repetition_penalty(v);
  });
  AddField<float>(app, group, "--presence-penalty", "-2 to 2", [=](float v) {
    request->mutable_sampling()->set_presence_penalty(v);
  });
  AddField<float>(app, group, "--frequency-penalty", "-2 to 2", [=](float v) {
    request->mutable_sampling()->set_frequency_penalty(v);
  });
  AddField<uint64_t>(
      app, group, "--seed", "Same seed, same tokens",
      [=](uint64_t v) { request->mutable_sampling()->set_seed(v); });
  // The conversion would accept -1.
  app.get_option("--seed")->check(CLI::NonNegativeNumber);
}

void AddStopFlags(CLI::App& app, GenerateRequest* request) {
  const char* group = "End of the text";
  AddField<int32_t>(
      app, group, "--max-tokens", "Tokens to generate at most",
      [=](int32_t v) { request->mutable_stop()->set_max_tokens(v); });
  AddField<int32_t>(
      app, group, "--min-tokens", "Tokens to generate at least",
      [=](int32_t v) { request->mutable_stop()->set_min_tokens(v); });
  AddField<std::vector<std::string>>(
      app, group, "--stop", "End before this text; may be repeated",
      [=](const std::vector<std::string>& texts) {
        for (const std::string& text : texts) {
          request->mutable_stop()->add_stop_strings(text);
        }
      });
  AddField<std::vector<int32_t>>(
      app, group, "--stop-token", "End at this token id; may be repeated",
      [=](const std::vector<int32_t>& tokens) {
        for (const int32_t token : tokens) {
          request->mutable_stop()->add_stop_token_ids(token);
        }
      });
  app.add_flag_callback(
         "--include-stop",
         [=] { request->mutable_stop()->set_include_stop_string(true); },
         "Print the stop text too")
      ->group(group);
  app.add_flag_callback(
         "--ignore-eos", [=] { request->mutable_stop()->set_ignore_eos(true); },
         "Go on past the end-of-text token")
      ->group(group);
  for (const char* name : {"--stop", "--stop-token"}) {
    // One value per flag, so that a prompt may follow.
    app.get_option(name)->expected(1)->multi_option_policy(
        CLI::MultiOptionPolicy::TakeAll);
  }
}

void AddRequestFacts(CLI::App& app, GenerateRequest* request) {
  const char* group = "Request";
  AddField<std::string>(app, group, "--model",
                        "Model name; absent: the only one",
                        [=](const std::string& v) { request->set_model(v); });
  AddField<int32_t>(app, group, "-n,--samples", "Samples of the same prompt",
                    [=](int32_t v) { request->set_n(v); });
  AddField<int32_t>(app, group, "--logprobs",
                    "Log-probabilities of tokens and of as many alternatives; "
                    "shown with --json",
                    [=](int32_t v) { request->set_logprobs(v); });
  AddField<int32_t>(app, group, "--prompt-logprobs",
                    "The same for the prompt; shown with --json",
                    [=](int32_t v) { request->set_prompt_logprobs(v); });
  AddField<int32_t>(app, group, "--priority", "Lower is more urgent",
                    [=](int32_t v) { request->set_priority(v); });
  AddField<int64_t>(app, group, "--time-limit-ms",
                    "Server's time limit for the request",
                    [=](int64_t v) { request->set_time_limit_ms(v); });
  AddField<int64_t>(app, group, "--queue-time-limit-ms",
                    "The same until it begins to run",
                    [=](int64_t v) { request->set_queue_time_limit_ms(v); });
  AddField<int64_t>(app, group, "--first-token-time-limit-ms",
                    "The same until its first token", [=](int64_t v) {
                      request->set_first_token_time_limit_ms(v);
                    });
  app.add_flag_callback(
         "--echo", [=] { request->set_echo(true); }, "Print the prompt too")
      ->group(group);
}

}  // namespace

void AddRequestFlags(CLI::App& app, GenerateRequest& request) {
  AddSamplingFlags(app, &request);
  AddStopFlags(app, &request);
  AddRequestFacts(app, &request);
}

}  // namespace binarymos
