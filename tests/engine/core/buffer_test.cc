#include "engine/core/buffer.h"

#include <cstdint>
#include <limits>
#include <utility>

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
