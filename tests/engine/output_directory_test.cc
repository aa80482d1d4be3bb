#include "engine/output_directory.h"

#include <filesystem>
#include <fstream>
#include <iterator>

#include "gtest/gtest.h"
#include "tests/engine/model/temp_dir.h"

namespace binarymos {
namespace {

std::string Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

int NumEntries(const TempDir& dir) {
  const std::filesystem::directory_iterator entries(dir.path());
  return static_cast<int>(std::distance(begin(entries), end(entries)));
}

TEST(OutputDirectoryTest, AppearsWithItsFilesOnCommit) {
  const TempDir dir;
  for (const bool durable : {false, true}) {
    const std::string target = dir / (durable ? "durable" : "quick");
    auto output = OutputDirectory::Create(target + "/", {.durable = durable});
    ASSERT_TRUE(output.ok()) << output.status();
    ASSERT_TRUE(output->WriteFile("a", "text").ok());
    EXPECT_FALSE(std::filesystem::exists(target));
    ASSERT_TRUE(output->Commit().ok());
    EXPECT_EQ(Read(target + "/a"), "text");
  }
  EXPECT_EQ(NumEntries(dir), 2);
}

TEST(OutputDirectoryTest, LeavesNothingWithoutCommit) {
  const TempDir dir;
  {
    auto output = OutputDirectory::Create(dir / "x", {});
    ASSERT_TRUE(output.ok());
    ASSERT_TRUE(output->WriteFile("a", "text").ok());
    EXPECT_EQ(NumEntries(dir), 1);
  }
  EXPECT_EQ(NumEntries(dir), 0);
}

TEST(OutputDirectoryTest, LosesAgainstWhoeverWasFaster) {
  const TempDir dir;
  {
    auto output = OutputDirectory::Create(dir / "x", {});
    ASSERT_TRUE(output.ok());
    std::filesystem::create_directory(dir / "x");
    std::ofstream(dir / "x/theirs") << "t";
    EXPECT_TRUE(absl::IsAlreadyExists(output->Commit()));
  }
  EXPECT_EQ(Read(dir / "x/theirs"), "t");
  EXPECT_EQ(NumEntries(dir), 1);
}

TEST(OutputDirectoryTest, ReplacesAModelDirectoryAndNothingElse) {
  const TempDir dir;
  std::filesystem::create_directory(dir / "x");
  std::ofstream(dir / "x/other") << "o";
  const OutputDirectoryOptions replace{.replace = true};
  EXPECT_TRUE(absl::IsAlreadyExists(
      OutputDirectory::Create(dir / "x", replace).status()));
  std::ofstream(dir / "x/config.json") << "{}";
  EXPECT_TRUE(
      absl::IsAlreadyExists(OutputDirectory::Create(dir / "x", {}).status()));
  {
    auto output = OutputDirectory::Create(dir / "x", replace);
    ASSERT_TRUE(output.ok()) << output.status();
    ASSERT_TRUE(output->WriteFile("new", "n").ok());
    ASSERT_TRUE(output->Commit().ok());
  }
  EXPECT_EQ(Read(dir / "x/new"), "n");
  EXPECT_FALSE(std::filesystem::exists(dir / "x/other"));
  EXPECT_EQ(NumEntries(dir), 1);
}

TEST(OutputDirectoryTest, DoesNotFollowALink) {
  const TempDir dir;
  std::filesystem::create_directory(dir / "model");
  std::ofstream(dir / "model/config.json") << "{}";
  std::filesystem::create_symlink("model", dir / "link");
  EXPECT_TRUE(absl::IsAlreadyExists(
      OutputDirectory::Create(dir / "link", {.replace = true}).status()));
}

TEST(OutputDirectoryTest, NeedsAParent) {
  const TempDir dir;
  EXPECT_TRUE(
      absl::IsNotFound(OutputDirectory::Create(dir / "no/x", {}).status()));
}

}  // namespace
}  // namespace binarymos
