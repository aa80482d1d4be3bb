#include "scheduler/waiting_queue.h"

#include <chrono>
#include <memory>

#include "gtest/gtest.h"

namespace binarymos {
namespace {

Sequence MakeSequence(RequestId id, int priority, int arrival, int sample = 0) {
  auto request = std::make_shared<Request>();
  request->id = id;
  request->priority = priority;
  request->arrival = MonotonicTime(std::chrono::seconds(arrival));
  request->prompt = {1};
  request->max_tokens = 1;
  return Sequence(std::move(request), sample, 10);
}

TEST(WaitingQueueTest, OrdersByPriorityThenArrivalThenSample) {
  Sequence late = MakeSequence(1, 0, 9);
  Sequence early = MakeSequence(2, 0, 5);
  Sequence second_sample = MakeSequence(2, 0, 5, 1);
  Sequence urgent = MakeSequence(3, -1, 100);
  WaitingQueue queue;
  EXPECT_EQ(queue.First(), nullptr);
  for (Sequence* seq : {&late, &second_sample, &early, &urgent}) {
    queue.Insert(*seq);
  }
  EXPECT_EQ(queue.size(), 4);
  EXPECT_EQ(queue.First(), &urgent);
  EXPECT_EQ(queue.After(urgent), &early);
  EXPECT_EQ(queue.After(early), &second_sample);
  EXPECT_EQ(queue.After(second_sample), &late);
  EXPECT_EQ(queue.After(late), nullptr);
}

TEST(WaitingQueueTest, ErasedSequenceFindsItsPlaceAgain) {
  Sequence a = MakeSequence(1, 0, 1);
  Sequence b = MakeSequence(2, 0, 2);
  WaitingQueue queue;
  queue.Insert(a);
  queue.Insert(b);
  queue.Erase(a);
  EXPECT_EQ(queue.First(), &b);
  queue.Insert(a);
  EXPECT_EQ(queue.First(), &a);
}

}  // namespace
}  // namespace binarymos
