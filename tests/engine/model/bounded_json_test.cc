#include "engine/model/bounded_json.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace binarymos {
namespace {

using ::testing::HasSubstr;

std::string ErrorOf(const std::string& text, const JsonLimits& limits = {}) {
  const auto document = ParseBoundedJson(text, "f.json", limits);
  EXPECT_EQ(document.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(document.status().message());
}

TEST(BoundedJsonTest, ParsesAnObject) {
  const auto document = ParseBoundedJson(R"({"a": [1, {"a": 2}]} )", "f.json");
  ASSERT_TRUE(document.ok()) << document.status();
  EXPECT_EQ((*document)["a"][1]["a"], 2);
}

TEST(BoundedJsonTest, NamesFileAndPlaceOfASyntaxError) {
  EXPECT_THAT(ErrorOf(R"({"a": )"), HasSubstr("f.json: not valid JSON: at"));
  EXPECT_THAT(ErrorOf(""), HasSubstr("f.json: not valid JSON"));
  EXPECT_THAT(ErrorOf("{} {}"), HasSubstr("f.json: not valid JSON"));
}

TEST(BoundedJsonTest, RefusesBytesThatAreNotUtf8) {
  EXPECT_THAT(ErrorOf("{\"a\": \"\xff\"}"), HasSubstr("UTF-8"));
}

TEST(BoundedJsonTest, RefusesNumbersThatOverflow) {
  EXPECT_THAT(ErrorOf(R"({"a": 1e999})"), HasSubstr("f.json"));
}

TEST(BoundedJsonTest, RefusesARootThatIsNoObject) {
  EXPECT_THAT(ErrorOf("[1]"), HasSubstr("expected a JSON object"));
}

TEST(BoundedJsonTest, RefusesDuplicateKeysAtEveryLevel) {
  EXPECT_THAT(ErrorOf(R"({"a": 1, "a": 1})"), HasSubstr("\"a\" stands twice"));
  EXPECT_THAT(ErrorOf(R"({"x": [{"b": 1, "\u0062": 1}]})"),
              HasSubstr("\"b\" stands twice"));
  EXPECT_TRUE(ParseBoundedJson(R"({"a": {"a": 1}})", "f").ok());
}

TEST(BoundedJsonTest, BoundsDepthAndNumberOfValues) {
  const JsonLimits limits = {.max_depth = 3, .max_values = 6};
  EXPECT_TRUE(ParseBoundedJson(R"({"a": [[1]]})", "f", limits).ok());
  EXPECT_THAT(ErrorOf(R"({"a": [[[]]]})", limits),
              HasSubstr("nested deeper than 3"));
  EXPECT_THAT(ErrorOf(R"({"a": [1,2,3,4]})", limits),
              HasSubstr("more than 6 values"));
}

TEST(BoundedJsonTest, SurvivesAMillionOpenBrackets) {
  EXPECT_THAT(ErrorOf("{\"a\":" + std::string(1'000'000, '[')),
              HasSubstr("nested deeper"));
}

}  // namespace
}  // namespace binarymos
