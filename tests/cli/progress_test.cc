#include "cli/progress.h"

#include <array>
#include <string>

#include "gtest/gtest.h"

namespace binarymos {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr Progress::Time kStart{};

// What a program writes to a file.
class Output {
 public:
  Output() : file_(std::tmpfile()) {}
  ~Output() { std::fclose(file_); }
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;

  std::FILE* file() const { return file_; }
  std::string text() const {
    std::rewind(file_);
    std::array<char, 4096> buffer;
    return {buffer.data(), std::fread(buffer.data(), 1, buffer.size(), file_)};
  }

 private:
  std::FILE* file_;
};

TEST(ProgressTest, TimesAreShort) {
  EXPECT_EQ(ShortTime(seconds(0)), "0s");
  EXPECT_EQ(ShortTime(seconds(59)), "59s");
  EXPECT_EQ(ShortTime(seconds(125)), "2m05s");
  EXPECT_EQ(ShortTime(seconds(3720)), "1h02m");
}

TEST(ProgressTest, TheBarForeseesTheEnd) {
  EXPECT_EQ(ProgressBar(0.0, seconds(0), "x"),
            "  0% [--------------------] starting, x");
  EXPECT_EQ(ProgressBar(0.4, seconds(8), "x"),
            " 40% [########------------] 12s left, x");
  EXPECT_EQ(ProgressBar(1.0, seconds(20), "x"),
            "100% [####################] 20s in all, x");
}

TEST(ProgressTest, ATerminalIsRedrawnInPlaceAndNotTooOften) {
  const Output output;
  {
    Progress progress(output.file(), /*is_terminal=*/true, kStart);
    progress.Update(0.5, "long detail", kStart + seconds(1));
    progress.Update(0.6, "skipped", kStart + seconds(1) + milliseconds(50));
    progress.Update(1.0, "end", kStart + seconds(1) + milliseconds(60));
  }
  EXPECT_EQ(output.text(),
            "\r 50% [##########----------] 1s left, long detail"
            "\r100% [####################] 1s in all, end      \n");
}

TEST(ProgressTest, AFileGetsALineForEveryTenth) {
  const Output output;
  {
    Progress progress(output.file(), /*is_terminal=*/false, kStart);
    for (int i = 0; i <= 100; ++i) {
      if (i == 40) i = 55;  // one large step
      progress.Update(i / 100.0, std::to_string(i), kStart + seconds(i));
    }
  }
  EXPECT_EQ(output.text(),
            "10% after 10s, 10\n20% after 20s, 20\n30% after 30s, 30\n"
            "50% after 55s, 55\n60% after 1m00s, 60\n70% after 1m10s, 70\n"
            "80% after 1m20s, 80\n90% after 1m30s, 90\n"
            "100% after 1m40s, 100\n");
}

}  // namespace
}  // namespace binarymos
