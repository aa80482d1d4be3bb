#include "scheduler/fair_share.h"

#include <string>

#include "gtest/gtest.h"

namespace binarymos {
namespace {

TEST(FairShareTest, OutputCostsTwiceWhatPromptsCost) {
  FairShare shares(/*credit=*/0);
  TenantShare& a = shares.Join("a");
  FairShare::Charge(a, 10, 3);
  EXPECT_EQ(a.service, 16);
}

TEST(FairShareTest, TimeSpentIdleEarnsNothing) {
  FairShare shares(/*credit=*/0);
  TenantShare& busy = shares.Join("busy");
  TenantShare& busier = shares.Join("busier");
  shares.BeginWaiting(busy);
  shares.BeginWaiting(busier);
  FairShare::Charge(busy, 100, 0);
  FairShare::Charge(busier, 300, 0);
  TenantShare& newcomer = shares.Join("new");
  shares.BeginWaiting(newcomer);
  EXPECT_EQ(newcomer.service, 100);
}

TEST(FairShareTest, IdleTimeEarnsNoMoreThanTheCredit) {
  FairShare shares(/*credit=*/30);
  TenantShare& busy = shares.Join("busy");
  shares.BeginWaiting(busy);
  FairShare::Charge(busy, 100, 0);
  TenantShare& newcomer = shares.Join("new");
  shares.BeginWaiting(newcomer);
  EXPECT_EQ(newcomer.service, 70);
}

TEST(FairShareTest, ServiceIsNeverForgivenForWaiting) {
  FairShare shares(/*credit=*/0);
  TenantShare& a = shares.Join("a");
  TenantShare& b = shares.Join("b");
  FairShare::Charge(a, 500, 0);
  shares.BeginWaiting(b);
  shares.BeginWaiting(a);
  EXPECT_EQ(a.service, 500);
}

TEST(FairShareTest, AnEmptyQueueIsEnteredWhereTheLastOneLeftIt) {
  FairShare shares(/*credit=*/0);
  TenantShare& a = shares.Join("a");
  shares.BeginWaiting(a);
  shares.EndWaiting(a);
  FairShare::Charge(a, 0, 50);
  TenantShare& b = shares.Join("b");
  shares.BeginWaiting(b);
  EXPECT_EQ(b.service, 100);
}

TEST(FairShareTest, CountsTheTenantsThatHaveSequences) {
  FairShare shares(/*credit=*/0);
  TenantShare& a = shares.Join("a");
  shares.Join("a");
  TenantShare& b = shares.Join("b");
  EXPECT_EQ(shares.num_tenants(), 2);
  shares.Leave(a);
  shares.Leave(b);
  EXPECT_EQ(shares.num_tenants(), 1);
}

TEST(FairShareTest, HalfOfTheCreditIsFarAhead) {
  FairShare shares(/*credit=*/30);
  TenantShare& a = shares.Join("a");
  TenantShare& b = shares.Join("b");
  FairShare::Charge(a, 14, 0);
  EXPECT_FALSE(shares.IsFarAhead(a, b));
  FairShare::Charge(a, 1, 0);
  EXPECT_TRUE(shares.IsFarAhead(a, b));
  EXPECT_FALSE(shares.IsFarAhead(b, a));
}

TEST(FairShareTest, AccountIsKeptWhileItIsOverdrawn) {
  FairShare shares(/*credit=*/0);
  TenantShare& greedy = shares.Join("greedy");
  FairShare::Charge(greedy, 1000, 0);
  shares.Leave(greedy);
  for (int i = 0; i < 500; ++i) {
    shares.Leave(shares.Join("visitor " + std::to_string(i)));
  }
  EXPECT_LT(shares.num_accounts(), 100u);
  EXPECT_EQ(shares.Join("greedy").service, 1000);
}

}  // namespace
}  // namespace binarymos
