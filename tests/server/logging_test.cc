#include "server/logging.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace binarymos {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::Not;

// What `write` writes to standard error with these options.
template <typename Write>
std::string Captured(const LogOptions& options, Write write) {
  ::testing::internal::CaptureStderr();
  EXPECT_TRUE(InitLogging(options).ok());
  write();
  return ::testing::internal::GetCapturedStderr();
}

TEST(LoggingTest, AJsonLineHasTimeLevelMessageAndFields) {
  const std::string line = Captured({.level = "info", .format = "json"}, [] {
    Log(LogLevel::kWarn, "request ended",
        {{"request_id", std::string("r-1")},
         {"tokens", 12},
         {"seconds", 0.5},
         {"cached", true}});
  });
  EXPECT_THAT(
      line, MatchesRegex("\\{\"time\":\"[0-9]+-[0-9]+-[0-9]+T[0-9:.]+Z\","
                         "\"level\":\"warning\",\"msg\":\"request ended\","
                         "\"request_id\":\"r-1\",\"tokens\":12,\"seconds\":0.5,"
                         "\"cached\":true\\}\n"));
}

TEST(LoggingTest, JsonEscapesWhatAClientMaySend) {
  const std::string line = Captured({.level = "info", .format = "json"}, [] {
    Log(LogLevel::kInfo, "m",
        {{"request_id", std::string("\"\\\n\x01\xFF\xC3\xA9")}});
  });
  EXPECT_THAT(line, HasSubstr("\"request_id\":\"\\\"\\\\\\n\\u0001"
                              "\xEF\xBF\xBD\xC3\xA9\"}\n"));
}

TEST(LoggingTest, JsonReplacesEveryKindOfBadUtf8) {
  for (const std::string bad :
       {"\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE2\x82", "\x80"}) {
    const std::string line = Captured({.level = "info", .format = "json"},
                                      [&] { Log(LogLevel::kInfo, bad); });
    EXPECT_THAT(line, HasSubstr("\xEF\xBF\xBD"));
    EXPECT_THAT(line, Not(HasSubstr(bad)));
  }
}

TEST(LoggingTest, TextIsReadableAndOneLineWhateverItHolds) {
  const std::string line = Captured({.level = "info", .format = "text"}, [] {
    Log(LogLevel::kInfo, "two\nlines",
        {{"request_id", "a b"}, {"n", 1}, {"name", "plain"}});
  });
  EXPECT_THAT(line, MatchesRegex("[0-9-]+ [0-9:.]+ info +two lines .*\n"));
  EXPECT_THAT(line, EndsWith("request_id=\"a b\" n=1 name=plain\n"));
}

TEST(LoggingTest, LinesBelowTheLevelAreNotWritten) {
  const std::string text = Captured({.level = "warn", .format = "text"}, [] {
    Log(LogLevel::kInfo, "quiet");
    Log(LogLevel::kError, "loud");
    EXPECT_FALSE(LogEnabled(LogLevel::kInfo));
    EXPECT_TRUE(LogEnabled(LogLevel::kError));
  });
  EXPECT_THAT(text, Not(HasSubstr("quiet")));
  EXPECT_THAT(text, HasSubstr("loud"));
}

TEST(LoggingTest, OffIsSilent) {
  EXPECT_EQ(Captured({.level = "off", .format = "text"},
                     [] { Log(LogLevel::kError, "x"); }),
            "");
}

TEST(LoggingTest, WithoutATerminalAutoIsJson) {
  EXPECT_THAT(Captured({.level = "info", .format = "auto"},
                       [] { Log(LogLevel::kInfo, "x"); }),
              HasSubstr("\"msg\":\"x\""));
}

TEST(LoggingTest, UnknownLevelsAndFormatsAreRefused) {
  EXPECT_EQ(InitLogging({.level = "loud", .format = "text"}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(InitLogging({.level = "info", .format = "xml"}).code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace binarymos
