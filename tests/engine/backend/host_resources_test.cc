#include "engine/backend/host_resources.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace binarymos {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

// A directory that stands for "/".
class HostResourcesTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = testing::TempDir() + "host_resources_XXXXXX";
    ASSERT_NE(mkdtemp(root_.data()), nullptr);
    Write("/proc/meminfo",
          "MemTotal:        8388608 kB\nMemFree:  1024 kB\n"
          "MemAvailable:    4194304 kB\n");
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) {
    const std::filesystem::path full = root_ + path;
    std::filesystem::create_directories(full.parent_path());
    std::ofstream(full) << text;
  }
  size_t Available() const {
    const auto available = AvailableHostMemory(root_);
    EXPECT_TRUE(available.ok()) << available.status();
    return available.value_or(0);
  }

  std::string root_;
};

TEST_F(HostResourcesTest, WithoutControlGroupsMemAvailableCounts) {
  EXPECT_EQ(Available(), 4096 * kMiB);
}

TEST_F(HostResourcesTest, AUnifiedGroupLeavesItsLimitMinusWhatIsNotFiles) {
  Write("/proc/self/cgroup", "0::/pod/box\n");
  Write("/sys/fs/cgroup/pod/box/memory.max", "1073741824\n");     // 1024 MiB
  Write("/sys/fs/cgroup/pod/box/memory.current", "734003200\n");  // 700 MiB
  Write("/sys/fs/cgroup/pod/box/memory.stat",
        "anon 1\ninactive_file 104857600\nactive_file 209715200\n");  // 300 MiB
  EXPECT_EQ(Available(), 624 * kMiB);
}

TEST_F(HostResourcesTest, AGroupAboveCanBeTighter) {
  Write("/proc/self/cgroup", "0::/pod/box\n");
  Write("/sys/fs/cgroup/pod/box/memory.max", "max\n");
  Write("/sys/fs/cgroup/pod/box/memory.current", "0\n");
  Write("/sys/fs/cgroup/pod/memory.max", "536870912\n");
  Write("/sys/fs/cgroup/pod/memory.current", "0\n");
  EXPECT_EQ(Available(), 512 * kMiB);
}

TEST_F(HostResourcesTest, AContainersOwnRootCountsWhereItsPathIsTheHosts) {
  Write("/proc/self/cgroup", "0::/../../kubepods/box\n");
  Write("/sys/fs/cgroup/memory.max", "268435456\n");
  Write("/sys/fs/cgroup/memory.current", "0\n");
  EXPECT_EQ(Available(), 256 * kMiB);
}

TEST_F(HostResourcesTest, FirstVersionGroupsAreRead) {
  Write("/proc/self/cgroup",
        "12:cpu,cpuacct:/docker/id\n5:memory:/docker/id\n");
  Write("/sys/fs/cgroup/memory/docker/id/memory.limit_in_bytes",
        "1073741824\n");
  Write("/sys/fs/cgroup/memory/docker/id/memory.usage_in_bytes", "536870912\n");
  Write("/sys/fs/cgroup/memory/docker/id/memory.stat",
        "inactive_file 9\ntotal_inactive_file 268435456\n");
  EXPECT_EQ(Available(), 768 * kMiB);
}

TEST_F(HostResourcesTest, UsageAboveTheLimitLeavesNothing) {
  Write("/proc/self/cgroup", "0::/\n");
  Write("/sys/fs/cgroup/memory.max", "1000\n");
  Write("/sys/fs/cgroup/memory.current", "2000\n");
  EXPECT_EQ(Available(), 0u);
}

TEST_F(HostResourcesTest, AMachineThatSaysNothingIsUnavailable) {
  Write("/proc/meminfo", "MemTotal: 5 kB\n");
  EXPECT_TRUE(absl::IsUnavailable(AvailableHostMemory(root_).status()));
}

TEST_F(HostResourcesTest, AUnifiedQuotaBelowOneCpuIsOneCpu) {
  Write("/proc/self/cgroup", "0::/box\n");
  Write("/sys/fs/cgroup/box/cpu.max", "50000 100000\n");
  EXPECT_EQ(UsableCpus(root_), 1);
}

TEST_F(HostResourcesTest, AQuotaIsRoundedDown) {
  Write("/proc/self/cgroup", "0::/box\n");
  Write("/sys/fs/cgroup/box/cpu.max", "190000 100000\n");
  EXPECT_EQ(UsableCpus(root_), 1);
}

TEST_F(HostResourcesTest, AFirstVersionQuotaIsRead) {
  Write("/proc/self/cgroup", "3:cpu,cpuacct:/box\n");
  Write("/sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", "100000\n");
  Write("/sys/fs/cgroup/cpu/box/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(UsableCpus(root_), 1);
}

TEST_F(HostResourcesTest, NoQuotaLeavesTheAffinity) {
  const int allowed = UsableCpus(root_);
  EXPECT_GE(allowed, 1);
  Write("/proc/self/cgroup", "0::/box\n3:cpu:/box\n");
  Write("/sys/fs/cgroup/box/cpu.max", "max 100000\n");
  Write("/sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", "-1\n");
  Write("/sys/fs/cgroup/cpu/box/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(UsableCpus(root_), allowed);
}

TEST(ThisHostTest, HasMemoryAndACpu) {
  const auto available = AvailableHostMemory();
  ASSERT_TRUE(available.ok()) << available.status();
  EXPECT_GT(*available, 0u);
  EXPECT_GE(UsableCpus(), 1);
}

}  // namespace
}  // namespace binarymos
