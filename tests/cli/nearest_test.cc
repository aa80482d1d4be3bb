#include "cli/nearest.h"

#include "gtest/gtest.h"

namespace binarymos {
namespace {

TEST(EditDistanceTest, CountsInsertionsDeletionsReplacementsAndSwaps) {
  EXPECT_EQ(EditDistance("", ""), 0);
  EXPECT_EQ(EditDistance("", "abc"), 3);
  EXPECT_EQ(EditDistance("abc", ""), 3);
  EXPECT_EQ(EditDistance("port", "sport"), 1);
  EXPECT_EQ(EditDistance("port", "part"), 1);
  EXPECT_EQ(EditDistance("port", "prot"), 1);
  EXPECT_EQ(EditDistance("ca", "abc"), 3);  // no character moves twice
  EXPECT_EQ(EditDistance("kitten", "sitting"), 3);
}

TEST(NearestMatchTest, ASlipFindsItsName) {
  const std::vector<std::string> names = {"serve", "generate", "health"};
  EXPECT_EQ(NearestMatch("serv", names), "serve");
  EXPECT_EQ(NearestMatch("genrate", names), "generate");
  EXPECT_EQ(NearestMatch("haelth", names), "health");
}

TEST(NearestMatchTest, SomethingElseFindsNothing) {
  const std::vector<std::string> names = {"serve", "generate", "health"};
  EXPECT_EQ(NearestMatch("train", names), "");
  EXPECT_EQ(NearestMatch("x", {"y1", "zz"}), "");
  EXPECT_EQ(NearestMatch("serve", {}), "");
}

TEST(NearestMatchTest, TheFirstOfEqualsWins) {
  EXPECT_EQ(NearestMatch("drain-x", {"drain-a", "drain-b"}), "drain-a");
}

TEST(DidYouMeanTest, IsASentenceOrNothing) {
  EXPECT_EQ(DidYouMean("serv", {"serve"}), "; did you mean 'serve'?");
  EXPECT_EQ(DidYouMean("train", {"serve"}), "");
}

}  // namespace
}  // namespace binarymos
