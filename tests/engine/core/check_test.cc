#include "engine/core/check.h"

#include "gtest/gtest.h"

namespace binarymos {
namespace {

TEST(CheckTest, ATrueConditionDoesNotEvaluateItsMessage) {
  int evaluated = 0;
  BINARYMOS_CHECK(true) << ++evaluated;
  BINARYMOS_CHECK_EQ(2 + 2, 4) << ++evaluated;
  EXPECT_EQ(evaluated, 0);
}

TEST(CheckTest, WorksAsTheBranchOfAnIf) {
  bool other = false;
  if (other)
    BINARYMOS_CHECK(false);
  else
    other = true;
  EXPECT_TRUE(other);
}

TEST(CheckDeathTest, AFailureNamesFileConditionAndMessage) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(BINARYMOS_CHECK(1 > 2) << "the reason " << 42,
               "check_test.cc:.* check failed: 1 > 2 the reason 42");
}

TEST(CheckDeathTest, AComparisonPrintsItsOperands) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const int three = 3;
  EXPECT_DEATH(BINARYMOS_CHECK_LT(three, 2) << "rows", "3 vs. 2.*rows");
}

}  // namespace
}  // namespace binarymos
