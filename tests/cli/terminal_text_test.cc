#include "cli/terminal_text.h"

#include "gtest/gtest.h"

namespace binarymos {
namespace {

TEST(TerminalTextTest, OrdinaryTextPassesUnchanged) {
  const std::string text = "Once upon a time,\n\tΑβγ 日本 🙂 é";
  EXPECT_EQ(ForTerminal(text), text);
}

TEST(TerminalTextTest, ControlCharactersCannotReachTheTerminal) {
  EXPECT_EQ(ForTerminal("a\x1B[2Jb"), "a\xEF\xBF\xBD[2Jb");
  EXPECT_EQ(ForTerminal("\r\a\b\x7F"),
            "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(ForTerminal(std::string(1, '\0')), "\xEF\xBF\xBD");
}

TEST(TerminalTextTest, TheTwoByteControlCharactersCannotEither) {
  EXPECT_EQ(ForTerminal("a\xC2\x9Bm"), "a\xEF\xBF\xBDm");  // CSI
  EXPECT_EQ(ForTerminal("\xC2\xA0"), "\xC2\xA0");          // no-break space
}

}  // namespace
}  // namespace binarymos
