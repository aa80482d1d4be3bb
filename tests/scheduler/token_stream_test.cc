#include "scheduler/token_stream.h"

#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace binarymos {
namespace {

TokenEvent EventOf(TokenId token) {
  TokenEvent event;
  event.token = token;
  return event;
}

TEST(TokenStreamTest, CallsReadyOnlyWhenItTurnsFromEmpty) {
  int num_calls = 0;
  TokenStream stream([&] { ++num_calls; });
  stream.Push(EventOf(1));
  stream.Push(EventOf(2));
  EXPECT_EQ(num_calls, 1);
  std::vector<TokenEvent> events;
  stream.Drain(events);
  stream.Push(EventOf(3));
  EXPECT_EQ(num_calls, 2);
}

TEST(TokenStreamTest, DrainAppendsInOrder) {
  TokenStream stream({});
  std::vector<TokenEvent> events;
  events.push_back(EventOf(0));
  stream.Push(EventOf(1));
  stream.Push(EventOf(2));
  stream.Drain(events);
  stream.Drain(events);
  ASSERT_EQ(events.size(), 3u);
  for (int i = 0; i < 3; ++i)
    EXPECT_EQ(events[static_cast<size_t>(i)].token, i);
}

TEST(TokenStreamTest, ReadyMayDrainBecauseNoLockIsHeld) {
  std::vector<TokenEvent> events;
  TokenStream* self = nullptr;
  TokenStream stream([&] { self->Drain(events); });
  self = &stream;
  stream.Push(EventOf(1));
  stream.Push(EventOf(2));
  EXPECT_EQ(events.size(), 2u);
}

TEST(TokenStreamTest, NothingIsLostBetweenThreads) {
  constexpr int kNumEvents = 10000;
  TokenStream stream({});
  std::thread writer([&] {
    for (int i = 0; i < kNumEvents; ++i) stream.Push(EventOf(i));
  });
  std::vector<TokenEvent> events;
  while (events.size() < kNumEvents) {
    stream.Drain(events);
    std::this_thread::yield();
  }
  writer.join();
  for (int i = 0; i < kNumEvents; ++i) {
    ASSERT_EQ(events[static_cast<size_t>(i)].token, i);
  }
}

}  // namespace
}  // namespace binarymos
