#include "cli/generate_flags.h"

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace binarymos {
namespace {

using ::testing::ElementsAre;

v1::GenerateRequest Parse(std::vector<std::string> flags) {
  CLI::App app;
  v1::GenerateRequest request;
  AddRequestFlags(app, request);
  app.parse(std::vector<std::string>(flags.rbegin(), flags.rend()));
  return request;
}

TEST(GenerateFlagsTest, WithoutFlagsEveryFieldIsAbsent) {
  EXPECT_EQ(Parse({}).ByteSizeLong(), 0u);
}

TEST(GenerateFlagsTest, ZeroIsAValue) {
  const v1::GenerateRequest request = Parse({"--temperature", "0"});
  EXPECT_TRUE(request.sampling().has_temperature());
  EXPECT_FALSE(request.sampling().has_top_k());
}

TEST(GenerateFlagsTest, EverySamplingFlagSetsItsField) {
  const v1::SamplingParams sampling =
      Parse({"--temperature", "0.5", "--top-k", "40", "--top-p", "0.75",
             "--min-p", "0.25", "--repetition-penalty", "1.5",
             "--presence-penalty", "-0.5", "--frequency-penalty", "0.125",
             "--seed", "18446744073709551615"})
          .sampling();
  EXPECT_EQ(sampling.temperature(), 0.5f);
  EXPECT_EQ(sampling.top_k(), 40);
  EXPECT_EQ(sampling.top_p(), 0.75f);
  EXPECT_EQ(sampling.min_p(), 0.25f);
  EXPECT_EQ(sampling.repetition_penalty(), 1.5f);
  EXPECT_EQ(sampling.presence_penalty(), -0.5f);
  EXPECT_EQ(sampling.frequency_penalty(), 0.125f);
  EXPECT_EQ(sampling.seed(), UINT64_MAX);
}

TEST(GenerateFlagsTest, EveryStopFlagSetsItsField) {
  const v1::StopConditions stop =
      Parse({"--max-tokens", "9", "--min-tokens", "2", "--stop", "a, b",
             "--stop", "\n", "--stop-token", "5", "--stop-token", "6",
             "--include-stop", "--ignore-eos"})
          .stop();
  EXPECT_EQ(stop.max_tokens(), 9);
  EXPECT_EQ(stop.min_tokens(), 2);
  EXPECT_THAT(stop.stop_strings(), ElementsAre("a, b", "\n"));
  EXPECT_THAT(stop.stop_token_ids(), ElementsAre(5, 6));
  EXPECT_TRUE(stop.include_stop_string());
  EXPECT_TRUE(stop.ignore_eos());
}

TEST(GenerateFlagsTest, EveryOtherFlagSetsItsField) {
  const v1::GenerateRequest request = Parse(
      {"--model", "m", "-n", "3", "--logprobs", "0", "--prompt-logprobs", "2",
       "--priority", "-1", "--time-limit-ms", "100", "--queue-time-limit-ms",
       "30", "--first-token-time-limit-ms", "40", "--echo"});
  EXPECT_EQ(request.model(), "m");
  EXPECT_EQ(request.n(), 3);
  EXPECT_TRUE(request.has_logprobs());
  EXPECT_EQ(request.prompt_logprobs(), 2);
  EXPECT_EQ(request.priority(), -1);
  EXPECT_EQ(request.time_limit_ms(), 100);
  EXPECT_EQ(request.queue_time_limit_ms(), 30);
  EXPECT_EQ(request.first_token_time_limit_ms(), 40);
  EXPECT_TRUE(request.echo());
}

TEST(GenerateFlagsTest, ANumberThatIsNoneIsAnError) {
  EXPECT_THROW(Parse({"--top-k", "many"}), CLI::ParseError);
  EXPECT_THROW(Parse({"--seed", "-1"}), CLI::ParseError);
}

}  // namespace
}  // namespace binarymos
