#include "scheduler/waiting_queue.h"

#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace binarymos {
namespace {

using ::testing::ElementsAre;

class WaitingQueueTest : public ::testing::Test {
 protected:
  // A sequence that waits.
  Sequence& Add(RequestId id, int arrival, const std::string& tenant = "",
                int priority = 0) {
    auto request = std::make_shared<Request>();
    request->id = id;
    request->tenant = tenant;
    request->priority = priority;
    request->arrival = MonotonicTime(std::chrono::seconds(arrival));
    request->prompt = {1};
    request->max_tokens = 1;
    sequences_.push_back(std::make_unique<Sequence>(std::move(request), 0, 10));
    Sequence& seq = *sequences_.back();
    seq.place.share = &shares_.Join(tenant);
    queue_.Insert(seq);
    return seq;
  }

  // As the scheduler admits: nullptr if nobody can go.
  Sequence* Admit(int tokens = 0) {
    Sequence* seq =
        queue_.Next(++round_, [this](Sequence& asked) -> std::optional<int> {
          if (held_.contains(asked.request().id)) return std::nullopt;
          return cached_[asked.request().id];
        });
    if (seq == nullptr) return nullptr;
    queue_.CountOvertake(*seq);
    queue_.Erase(*seq);
    seq->place.order = next_order_++;
    FairShare::Charge(*seq->place.share, tokens, 0);
    return seq;
  }
  std::vector<RequestId> AdmitAll(int tokens = 0) {
    std::vector<RequestId> ids;
    while (Sequence* seq = Admit(tokens)) ids.push_back(seq->request().id);
    return ids;
  }

  FairShare shares_{/*credit=*/0};
  WaitingQueue queue_{shares_};
  std::map<RequestId, int> cached_;
  std::set<RequestId> held_;

 private:
  std::vector<std::unique_ptr<Sequence>> sequences_;
  int64_t round_ = 0;
  int64_t next_order_ = 0;
};

TEST_F(WaitingQueueTest, OrdersByPriorityThenArrival) {
  Add(1, 9);
  Add(2, 5);
  Add(3, 100, "", -1);
  EXPECT_EQ(queue_.size(), 3);
  EXPECT_THAT(AdmitAll(), ElementsAre(3, 2, 1));
  EXPECT_EQ(queue_.size(), 0);
}

TEST_F(WaitingQueueTest, TenantsTakeTurnsByWhatTheyHaveHad) {
  for (RequestId id = 1; id <= 4; ++id) Add(id, 0, "flood");
  Add(11, 50, "b");
  Add(12, 51, "b");
  EXPECT_THAT(AdmitAll(10), ElementsAre(1, 11, 2, 12, 3, 4));
}

TEST_F(WaitingQueueTest, WhoRanBeforeComesFirstOfItsTenantAndInItsOldPlace) {
  Add(1, 1);
  Add(2, 2);
  Sequence* const first = Admit();
  Sequence* const second = Admit();
  Add(3, 0);
  Add(4, 0, "", -1);
  queue_.Insert(*second);
  queue_.Insert(*first);
  EXPECT_THAT(AdmitAll(), ElementsAre(4, 1, 2, 3));
}

TEST_F(WaitingQueueTest, WhoRanBeforeWaitsForTheTurnOfItsTenant) {
  Add(1, 1);
  Add(2, 2, "b");
  Sequence* const first = Admit(100);
  queue_.Insert(*first);
  EXPECT_THAT(AdmitAll(1000), ElementsAre(2, 1));
}

TEST_F(WaitingQueueTest, LongestCachedPrefixOfATenantIsPreferred) {
  Add(1, 1);
  Add(2, 2);
  Add(3, 3);
  cached_ = {{2, 16}, {3, 48}};
  EXPECT_THAT(AdmitAll(), ElementsAre(3, 2, 1));
}

TEST_F(WaitingQueueTest, NobodyIsOvertakenForEver) {
  Add(1, 1);
  for (RequestId id = 2; id <= 30; ++id) {
    Add(id, static_cast<int>(id));
    cached_[id] = 16;
  }
  const std::vector<RequestId> order = AdmitAll();
  EXPECT_EQ(order[WaitingQueue::kMaxOvertakes], 1u);
}

TEST_F(WaitingQueueTest, HeldSequencesLetOthersPass) {
  Add(1, 1, "a");
  Add(2, 2, "a");
  Add(3, 3, "b");
  Add(4, 4, "b", 7);
  held_ = {1, 3};
  EXPECT_THAT(AdmitAll(), ElementsAre(2, 4));
  held_.clear();
  EXPECT_THAT(AdmitAll(), ElementsAre(1, 3));
}

TEST_F(WaitingQueueTest, HeldSequenceIsOvertakenNoMoreThanOthersAre) {
  Add(1, 1);
  held_ = {1};
  for (RequestId id = 2; id <= 30; ++id) Add(id, static_cast<int>(id));
  EXPECT_EQ(AdmitAll().size(), size_t{WaitingQueue::kMaxOvertakes});
  held_.clear();
  EXPECT_EQ(Admit()->request().id, 1u);
}

}  // namespace
}  // namespace binarymos
