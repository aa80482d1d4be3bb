#include "cli/option_table.h"

#include <stdlib.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace binarymos {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;
using ::testing::Not;

class OptionTableTest : public ::testing::Test {
 protected:
  OptionTableTest() {
    table_.AddText({"Network", "host", "Address", true}, &host_);
    table_.AddInt({"Network", "grpc-port", "Port"}, &port_);
    table_.AddInt64({"Limits", "max-tokens", "Tokens"}, &max_tokens_);
    table_.AddSwitch({"Limits", "prefix-caching", "Reuse"}, &caching_);
    table_.AddBytes({"Limits", "buffer", "Buffer"}, &buffer_);
    table_.AddDuration({"Limits", "drain-timeout", "Time"}, &timeout_);
    table_.AddFlags(app_);
  }

  ~OptionTableTest() override {
    if (!path_.empty()) unlink(path_.c_str());
  }

  // A command line and an environment.
  absl::Status Load(std::vector<std::string> flags,
                    std::vector<std::string> variables = {}) {
    std::vector<std::string> reversed(flags.rbegin(), flags.rend());
    app_.parse(reversed);
    std::vector<const char*> environment;
    for (const std::string& variable : variables) {
      environment.push_back(variable.c_str());
    }
    environment.push_back(nullptr);
    return table_.Load(environment.data());
  }

  // Path of a file that holds `text` until the end of the test.
  std::string File(const std::string& text) {
    path_ = ::testing::TempDir() + "/option_table_XXXXXX";
    close(mkstemp(path_.data()));
    std::ofstream(path_) << text;
    return path_;
  }

  std::string host_ = "127.0.0.1";
  int port_ = 9000;
  int64_t max_tokens_ = 0;
  bool caching_ = true;
  int64_t buffer_ = 256 << 10;
  milliseconds timeout_{30'000};
  OptionTable table_;
  CLI::App app_;
  std::string path_;
};

TEST_F(OptionTableTest, WithoutSourcesTheDefaultsStay) {
  ASSERT_TRUE(Load({}).ok());
  EXPECT_EQ(host_, "127.0.0.1");
  EXPECT_EQ(port_, 9000);
  EXPECT_TRUE(caching_);
  EXPECT_EQ(timeout_, milliseconds(30'000));
}

TEST_F(OptionTableTest, FlagsBeatVariablesBeatTheFileBeatsTheDefault) {
  const std::string file =
      File("grpc-port = 1\nhost = \"file\"\nmax-tokens = 1\n");
  const absl::Status status =
      Load({"--config", file, "--grpc-port", "3"},
           {"BINARYMOS_GRPC_PORT=2", "BINARYMOS_HOST=variable"});
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(port_, 3);
  EXPECT_EQ(host_, "variable");
  EXPECT_EQ(max_tokens_, 1);
  EXPECT_EQ(buffer_, 256 << 10);
}

TEST_F(OptionTableTest, AFlagReadsEveryType) {
  const absl::Status status = Load(
      {"--host", "h", "--grpc-port=-1", "--max-tokens", "5000000000",
       "--no-prefix-caching", "--buffer", "2MiB", "--drain-timeout", "1m30s"});
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(host_, "h");
  EXPECT_EQ(port_, -1);
  EXPECT_EQ(max_tokens_, 5'000'000'000);
  EXPECT_FALSE(caching_);
  EXPECT_EQ(buffer_, 2 << 20);
  EXPECT_EQ(timeout_, milliseconds(90'000));
}

TEST_F(OptionTableTest, AVariableReadsEveryType) {
  const absl::Status status =
      Load({}, {"PATH=/bin", "BINARYMOS_HOST=h", "BINARYMOS_GRPC_PORT=-1",
                "BINARYMOS_MAX_TOKENS=7", "BINARYMOS_PREFIX_CACHING=false",
                "BINARYMOS_BUFFER=4096", "BINARYMOS_DRAIN_TIMEOUT=250ms"});
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(host_, "h");
  EXPECT_EQ(port_, -1);
  EXPECT_EQ(max_tokens_, 7);
  EXPECT_FALSE(caching_);
  EXPECT_EQ(buffer_, 4096);
  EXPECT_EQ(timeout_, milliseconds(250));
}

TEST_F(OptionTableTest, AFileReadsEveryType) {
  const std::string file = File(
      "host = \"h\"\ngrpc-port = -1\nmax-tokens = 7\n"
      "prefix-caching = false\nbuffer = \"1GiB\"\n"
      "drain-timeout = \"2h\"\n");
  const absl::Status status = Load({}, {"BINARYMOS_CONFIG=" + file});
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(host_, "h");
  EXPECT_EQ(port_, -1);
  EXPECT_EQ(max_tokens_, 7);
  EXPECT_FALSE(caching_);
  EXPECT_EQ(buffer_, 1 << 30);
  EXPECT_EQ(timeout_, std::chrono::hours(2));
}

TEST_F(OptionTableTest, AFileReadsNumbersWithAndWithoutAFraction) {
  double part = 0.9, whole = 0.9;
  table_.AddNumber({"Cache", "part", "Part"}, &part);
  table_.AddNumber({"Cache", "whole", "Whole"}, &whole);
  const absl::Status status =
      Load({"--config", File("part = 0.25\nwhole = 1\n")});
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(part, 0.25);
  EXPECT_EQ(whole, 1.0);
}

TEST_F(OptionTableTest, SeparateNegativeValuesAreNotFlags) {
  ASSERT_TRUE(Load({"--grpc-port", "-1"}).ok());
  EXPECT_EQ(port_, -1);
}

TEST_F(OptionTableTest, TheLastOfRepeatedFlagsWins) {
  ASSERT_TRUE(Load({"--grpc-port", "1", "--grpc-port", "2"}).ok());
  EXPECT_EQ(port_, 2);
}

TEST_F(OptionTableTest, APositionalOptionNeedsNoFlag) {
  ASSERT_TRUE(Load({"somewhere"}).ok());
  EXPECT_EQ(host_, "somewhere");
}

TEST_F(OptionTableTest, ASwitchCanBeSetToAValueByItsFlag) {
  ASSERT_TRUE(Load({"--prefix-caching=false"}).ok());
  EXPECT_FALSE(caching_);
}

TEST_F(OptionTableTest, AnUnknownKeyNamesLineAndNearestKey) {
  const std::string file = File("host = \"h\"\ngrcp-port = 1\n");
  const absl::Status status = Load({"--config", file});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), file +
                                  ":2: unknown key 'grcp-port'; did you "
                                  "mean 'grpc-port'?");
}

TEST_F(OptionTableTest, ATableInTheFileIsAnUnknownKey) {
  const std::string file = File("[network]\nhost = \"h\"\n");
  const absl::Status status = Load({"--config", file});
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("unknown key 'network'"));
}

TEST_F(OptionTableTest, AnUnknownVariableNamesTheNearestOne) {
  const absl::Status status = Load({}, {"BINARYMOS_GRPC_PROT=1"});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(),
            "unknown environment variable BINARYMOS_GRPC_PROT; did you mean "
            "'BINARYMOS_GRPC_PORT'?");
}

TEST_F(OptionTableTest, VariablesOfKubernetesAreExplained) {
  const absl::Status status = Load({}, {"BINARYMOS_PORT=tcp://10.0.0.1:9000"});
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("enableServiceLinks: false"));
}

struct BadValue {
  std::string name;
  std::string text;
};

TEST_F(OptionTableTest, EveryBadValueIsRefusedWithPlaceAndExpectation) {
  for (const BadValue& bad : std::vector<BadValue>{
           {"GRPC_PORT", "nine"},
           {"GRPC_PORT", "1.5"},
           {"GRPC_PORT", ""},
           {"GRPC_PORT", "99999999999"},
           {"MAX_TOKENS", "99999999999999999999"},
           {"PREFIX_CACHING", "maybe"},
           {"BUFFER", "1MB"},
           {"BUFFER", "MiB"},
           {"BUFFER", "9223372036854775807KiB"},
           {"DRAIN_TIMEOUT", "30"},
           {"DRAIN_TIMEOUT", "soon"},
           {"DRAIN_TIMEOUT", "inf"},
           {"DRAIN_TIMEOUT", "1us"},
       }) {
    const std::string variable = "BINARYMOS_" + bad.name;
    const std::string line = variable + "=" + bad.text;
    const char* environment[] = {line.c_str(), nullptr};
    const absl::Status status = table_.Load(environment);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << line;
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(variable + ": '" + bad.text + "' is not "));
  }
}

TEST_F(OptionTableTest, AValueOfTheWrongTypeInTheFileIsRefused) {
  for (const std::string text :
       {"grpc-port = \"9000\"", "host = 1", "prefix-caching = \"yes\"",
        "drain-timeout = 30", "buffer = 1.5", "grpc-port = [1]"}) {
    const std::string file = File(text + "\n");
    const absl::Status status = Load({"--config", file});
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(file + ":1: "));
    unlink(file.c_str());
  }
}

TEST_F(OptionTableTest, AFileThatIsNotTomlNamesTheLine) {
  const std::string file = File("host = \"h\"\n= 3\n");
  const absl::Status status = Load({"--config", file});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(file + ":2: "));
}

TEST_F(OptionTableTest, AMissingFileIsNotFound) {
  const absl::Status status = Load({"--config", "/nonexistent/serve.toml"});
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << status;
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("/nonexistent/serve.toml"));
}

TEST_F(OptionTableTest, PrintedOptionsShowValueAndOrigin) {
  const std::string file = File("max-tokens = 1\n");
  ASSERT_TRUE(
      Load({"--config", file, "--grpc-port", "3"}, {"BINARYMOS_HOST=a\"b\\c"})
          .ok());
  const std::string text = table_.ToToml();
  EXPECT_THAT(text, HasSubstr("grpc-port = 3  # flag\n"));
  EXPECT_THAT(text, HasSubstr("host = \"a\\\"b\\\\c\"  # environment "
                              "BINARYMOS_HOST\n"));
  EXPECT_THAT(text, HasSubstr("max-tokens = 1  # file " + file + ":1\n"));
  EXPECT_THAT(text, HasSubstr("buffer = \"256KiB\"  # default\n"));
  EXPECT_THAT(text, HasSubstr("drain-timeout = \"30s\"  # default\n"));
  EXPECT_THAT(text, HasSubstr("# Network\n"));
}

TEST_F(OptionTableTest, PrintedOptionsReadBackAsTheSameValues) {
  ASSERT_TRUE(Load({"--host", "tab\there", "--buffer", "3MiB",
                    "--drain-timeout", "1500ms", "--no-prefix-caching"})
                  .ok());
  const std::string text = table_.ToToml();
  host_ = "";
  buffer_ = 0;
  timeout_ = milliseconds(0);
  caching_ = true;
  OptionTable again;
  again.AddText({"Network", "host", "Address"}, &host_);
  again.AddInt({"Network", "grpc-port", "Port"}, &port_);
  again.AddInt64({"Limits", "max-tokens", "Tokens"}, &max_tokens_);
  again.AddSwitch({"Limits", "prefix-caching", "Reuse"}, &caching_);
  again.AddBytes({"Limits", "buffer", "Buffer"}, &buffer_);
  again.AddDuration({"Limits", "drain-timeout", "Time"}, &timeout_);
  const std::string variable = "BINARYMOS_CONFIG=" + File(text);
  const char* environment[] = {variable.c_str(), nullptr};
  const absl::Status status = again.Load(environment);
  ASSERT_TRUE(status.ok()) << status << "\n" << text;
  EXPECT_EQ(host_, "tab\there");
  EXPECT_EQ(buffer_, 3 << 20);
  EXPECT_EQ(timeout_, milliseconds(1500));
  EXPECT_FALSE(caching_);
}

TEST_F(OptionTableTest, HelpGroupsOptionsAndShowsDefaults) {
  const std::string help = app_.help();
  EXPECT_THAT(help, HasSubstr("Network:"));
  EXPECT_THAT(help, HasSubstr("Limits:"));
  EXPECT_THAT(help, HasSubstr("[9000]"));
  EXPECT_THAT(help, HasSubstr("[256KiB]"));
  EXPECT_THAT(help, Not(HasSubstr("[\"")));
}

}  // namespace
}  // namespace binarymos
