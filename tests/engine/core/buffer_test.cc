#include "engine/core/buffer.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <limits>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace binarymos {
namespace {

TEST(BufferTest, HostMemoryIsZeroedAndAligned) {
  for (const size_t bytes : {size_t{1}, size_t{4097}, size_t{5} << 20}) {
    auto buffer = Buffer::AllocateHost(bytes);
    ASSERT_TRUE(buffer.ok()) << buffer.status();
    ASSERT_GE(buffer->bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 64, 0u);
    auto* data = static_cast<uint8_t*>(buffer->data());
    for (size_t i = 0; i < bytes; ++i) ASSERT_EQ(data[i], 0) << i;
    data[0] = data[bytes - 1] = 1;
  }
}

// Sizes around those at which buffers begin and cease to share a mapping.
constexpr size_t kSizes[] = {size_t{255} << 10,      size_t{256} << 10,
                             (size_t{1} << 20) + 64, (size_t{2} << 20) + 4096,
                             (size_t{32} << 20) - 1, size_t{32} << 20};

TEST(BufferTest, BuffersDoNotOverlap) {
  std::vector<Buffer> buffers;
  for (int round = 0; round < 3; ++round) {
    for (const size_t bytes : kSizes) {
      auto buffer = Buffer::AllocateHost(bytes);
      ASSERT_TRUE(buffer.ok()) << buffer.status();
      std::memset(buffer->data(), static_cast<int>(buffers.size() + 1), bytes);
      buffers.push_back(*std::move(buffer));
    }
  }
  for (size_t i = 0; i < buffers.size(); ++i) {
    const auto* data = static_cast<const uint8_t*>(buffers[i].data());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % 4096, 0u);
    EXPECT_TRUE(std::all_of(data, data + buffers[i].bytes(),
                            [&](uint8_t value) { return value == i + 1; }))
        << i;
  }
}

TEST(BufferTest, FreeingABufferLeavesItsNeighboursAlone) {
  std::vector<Buffer> buffers;
  for (int i = 0; i < 3; ++i) {
    auto buffer = Buffer::AllocateHost((size_t{1} << 20) + 64);
    ASSERT_TRUE(buffer.ok()) << buffer.status();
    std::memset(buffer->data(), i + 1, buffer->bytes());
    buffers.push_back(*std::move(buffer));
  }
  buffers[1] = Buffer();
  const auto zeroed = Buffer::AllocateHost(size_t{1} << 20);
  ASSERT_TRUE(zeroed.ok());
  const auto holds = [](const Buffer& buffer, uint8_t expected) {
    const auto* data = static_cast<const uint8_t*>(buffer.data());
    return std::all_of(data, data + buffer.bytes(),
                       [=](uint8_t value) { return value == expected; });
  };
  EXPECT_TRUE(holds(buffers[0], 1));
  EXPECT_TRUE(holds(buffers[2], 3));
  EXPECT_TRUE(holds(*zeroed, 0));
}

// Pages of address space.
int64_t VirtualPages() {
  int64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages;
}

TEST(BufferTest, SharedMappingsEndWithTheirLastBuffer) {
  const int64_t before = VirtualPages();
  ASSERT_GT(before, 0);
  for (int i = 0; i < 10; ++i) {
    std::vector<Buffer> buffers;  // more than one mapping holds
    for (int j = 0; j < 40; ++j) {
      auto buffer = Buffer::AllocateHost(size_t{31} << 20);
      ASSERT_TRUE(buffer.ok()) << buffer.status();
      buffers.push_back(*std::move(buffer));
    }
    EXPECT_GE(VirtualPages() - before, int64_t{40} * (31 << 20) / 4096);
  }
  EXPECT_LT(VirtualPages() - before, (1 << 30) / 4096);
}

TEST(BufferTest, ThreadsMayAllocateAtTheSameTime) {
  std::vector<std::thread> threads;
  std::atomic<int> errors{0};
  for (int t = 1; t <= 4; ++t) {
    threads.emplace_back([t, &errors] {
      for (int i = 0; i < 20; ++i) {
        auto buffer = Buffer::AllocateHost(size_t{300} << 10);
        if (!buffer.ok()) return void(++errors);
        auto* data = static_cast<uint8_t*>(buffer->data());
        std::memset(data, t, buffer->bytes());
        if (data[buffer->bytes() - 1] != t) ++errors;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(errors, 0);
}

TEST(BufferTest, AnEmptyBufferStillHasAnAddress) {
  auto buffer = Buffer::AllocateHost(0);
  ASSERT_TRUE(buffer.ok());
  EXPECT_NE(buffer->data(), nullptr);
}

TEST(BufferTest, TooMuchIsResourceExhausted) {
  const auto buffer =
      Buffer::AllocateHost(std::numeric_limits<size_t>::max() / 2);
  EXPECT_TRUE(absl::IsResourceExhausted(buffer.status())) << buffer.status();
}

int g_freed = 0;

TEST(BufferTest, MovingKeepsOneOwner) {
  g_freed = 0;
  int value = 7;
  {
    Buffer first(&value, sizeof(value), [](void*, size_t) { ++g_freed; });
    Buffer second(std::move(first));
    EXPECT_EQ(first.data(), nullptr);  // NOLINT(bugprone-use-after-move)
    Buffer third;
    third = std::move(second);
    EXPECT_EQ(third.data(), &value);
    EXPECT_EQ(third.bytes(), sizeof(value));
    EXPECT_EQ(g_freed, 0);
  }
  EXPECT_EQ(g_freed, 1);
}

}  // namespace
}  // namespace binarymos
