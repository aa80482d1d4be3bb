#include "engine/model/regular_file.h"

#include <sys/stat.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/temp_dir.h"

namespace binarymos {
namespace {

using ::testing::HasSubstr;

TEST(RegularFileTest, ReadsTheWholeFile) {
  const TempDir dir;
  dir.Write("f", std::string("a\0b", 3));
  const auto content = ReadRegularFile(dir / "f", 3);
  ASSERT_TRUE(content.ok()) << content.status();
  EXPECT_EQ(*content, std::string("a\0b", 3));
}

TEST(RegularFileTest, RefusesAFileThatIsTooLarge) {
  const TempDir dir;
  dir.Write("f", "1234");
  const auto content = ReadRegularFile(dir / "f", 3);
  EXPECT_EQ(content.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(content.status().message()),
              HasSubstr("has 4 bytes, expected at most 3"));
}

TEST(RegularFileTest, SaysThatThereIsNoFile) {
  const TempDir dir;
  const auto content = ReadRegularFile(dir / "none", 3);
  EXPECT_EQ(content.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(content.status().message()), HasSubstr("none"));
}

TEST(RegularFileTest, NeitherWaitsForAFifoNorReadsADirectory) {
  const TempDir dir;
  ASSERT_EQ(mkfifo((dir / "fifo").c_str(), 0600), 0);
  const auto fifo = ReadRegularFile(dir / "fifo", 3);
  EXPECT_EQ(fifo.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(fifo.status().message()), HasSubstr("is a FIFO"));
  const auto directory = ReadRegularFile(dir.path(), 3);
  EXPECT_EQ(directory.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(directory.status().message()),
              HasSubstr("is a directory"));
}

}  // namespace
}  // namespace binarymos
