#include "engine/backend/cuda_upload.h"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"
#include "tests/engine/cuda/emulated_driver.h"

namespace binarymos {
namespace {

std::vector<int32_t> Numbers(int count, int first) {
  std::vector<int32_t> numbers(count);
  std::iota(numbers.begin(), numbers.end(), first);
  return numbers;
}

class CudaUploadTest : public testing::Test {
 protected:
  // Copies two arrays; returns where they are.
  void Copy(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
    const CudaUpload::Part parts[] = {{std::as_bytes(std::span(a)), a_},
                                      {std::as_bytes(std::span(b)), b_}};
    ASSERT_TRUE(upload_.Copy(parts, driver_).ok());
  }
  void ExpectOnDevice(const std::vector<int32_t>& a,
                      const std::vector<int32_t>& b) {
    EXPECT_EQ(b_ % 16, 0u);
    EXPECT_TRUE(std::equal(a.begin(), a.end(), upload_.At<int32_t>(a_)));
    EXPECT_TRUE(std::equal(b.begin(), b.end(), upload_.At<int32_t>(b_)));
  }

  EmulatedDevice device_{.deferred = true};
  EmulatedDriver driver_{&device_};
  CudaUpload upload_;
  size_t a_ = 0, b_ = 0;
};

TEST_F(CudaUploadTest, TwoCopiesMayBeUnderWay) {
  ASSERT_TRUE(upload_.Reserve(100, driver_).ok());
  const int waits = device_.num_waits;
  const int allocations = device_.num_allocations;
  Copy(Numbers(3, 1), Numbers(2, 10));
  ASSERT_TRUE(driver_.PutMark(0).ok());
  Copy(Numbers(3, 4), Numbers(2, 20));
  EXPECT_EQ(device_.num_waits, waits);
  EXPECT_EQ(device_.num_allocations, allocations);
  ASSERT_TRUE(driver_.AwaitMark(0).ok());
  ExpectOnDevice(Numbers(3, 1), Numbers(2, 10));
  ASSERT_TRUE(driver_.Synchronize().ok());
  ExpectOnDevice(Numbers(3, 4), Numbers(2, 20));
}

TEST_F(CudaUploadTest, ToGrowItWaitsForCopiesUnderWay) {
  Copy(Numbers(3, 1), Numbers(2, 10));
  EXPECT_EQ(upload_.num_moves(), 1);
  Copy(Numbers(100, 1), Numbers(0, 0));
  EXPECT_EQ(upload_.num_moves(), 2);
  EXPECT_EQ(device_.num_waits, 1);
  ASSERT_TRUE(driver_.Synchronize().ok());
  ExpectOnDevice(Numbers(100, 1), Numbers(0, 0));
  EXPECT_EQ(upload_.num_moves(), 2);
}

TEST_F(CudaUploadTest, NothingIsNotCopied) {
  Copy({}, {});
  EXPECT_EQ(device_.num_copies_to_device, 0);
}

}  // namespace
}  // namespace binarymos
