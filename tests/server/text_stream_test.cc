#include "server/text_stream.h"

#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/server/fake_engine.h"

namespace binarymos {
namespace {

using Tok = FakeTokenizer;

const FakeTokenizer& Tokens() {
  static const auto& tokenizer = *new FakeTokenizer;
  return tokenizer;
}

std::vector<TokenId> Bytes(std::string_view text) {
  std::vector<TokenId> tokens;
  for (const char c : text) tokens.push_back(Tok::Byte(c));
  return tokens;
}

// A stream in the middle of a text.
TextStream Stream(TextStops stops = {}) {
  TextStream stream(Tokens(), std::move(stops));
  std::string unused;
  stream.Prompt(Bytes("p"), /*echo=*/false, unused);
  return stream;
}

// What each token gives.
std::vector<std::string> Deltas(TextStream& stream,
                                const std::vector<TokenId>& tokens) {
  std::vector<std::string> deltas;
  for (const TokenId token : tokens) {
    std::string text;
    const bool matched = stream.Append(token, text);
    deltas.push_back(text);
    if (matched) return deltas;
  }
  std::string text;
  stream.Finish(text);
  deltas.push_back(text);
  return deltas;
}

std::string Join(const std::vector<std::string>& parts) {
  std::string whole;
  for (const std::string& part : parts) whole += part;
  return whole;
}

using Strings = std::vector<std::string>;

TEST(TextStreamTest, TextGoesOutTokenByToken) {
  TextStream stream = Stream();
  EXPECT_EQ(Deltas(stream, {Tok::kThe, Tok::Byte('n')}),
            (Strings{" the", "n", ""}));
  EXPECT_EQ(stream.num_tokens(), 2);
}

TEST(TextStreamTest, CharacterWaitsForItsLastByte) {
  TextStream stream = Stream();
  EXPECT_EQ(Deltas(stream, Bytes("a\xF0\x9F\x98\x80z")),
            (Strings{"a", "", "", "", "\xF0\x9F\x98\x80", "z", ""}));
}

TEST(TextStreamTest, CharacterMaySpanTokensOfSeveralBytes) {
  TextStream stream = Stream();
  EXPECT_EQ(Deltas(stream, {Tok::kCafe, Tok::kAcute}),
            (Strings{"caf", "\xC3\xA9 au", ""}));
}

TEST(TextStreamTest, ByteThatBeginsNoCharacterIsReplacedAtOnce) {
  TextStream stream = Stream();
  EXPECT_EQ(Deltas(stream, Bytes("\x80"
                                 "a\xC3(")),
            (Strings{"\xEF\xBF\xBD", "a", "", "\xEF\xBF\xBD(", ""}));
}

TEST(TextStreamTest, CharacterThatNeverCompletesIsReplacedAtTheEnd) {
  TextStream stream = Stream();
  EXPECT_EQ(Deltas(stream, Bytes("a\xE2\x82")),
            (Strings{"a", "", "", "\xEF\xBF\xBD\xEF\xBF\xBD"}));
}

TEST(TextStreamTest, SpaceBeforeTheFirstWordOfATextIsDropped) {
  TextStream stream(Tokens(), {});
  std::string text;
  stream.Prompt(std::vector<TokenId>{Tok::kBos}, /*echo=*/false, text);
  EXPECT_EQ(Deltas(stream, {Tok::kThe, Tok::kThe}),
            (Strings{"the", " the", ""}));
}

TEST(TextStreamTest, SpaceAfterAPromptStays) {
  TextStream stream = Stream();
  EXPECT_EQ(Join(Deltas(stream, {Tok::kThe})), " the");
}

TEST(TextStreamTest, EchoIsThePromptAsDecoded) {
  TextStream stream(Tokens(), {});
  std::string text;
  stream.Prompt(*Tokens().Encode("once", true), /*echo=*/true, text);
  EXPECT_EQ(text, "once");
  EXPECT_EQ(Join(Deltas(stream, {Tok::kThe})), " the");
}

TEST(TextStreamTest, CharacterMaySpanEchoAndOutput) {
  TextStream stream(Tokens(), {});
  std::string text;
  stream.Prompt(std::vector<TokenId>{Tok::kCafe}, /*echo=*/true, text);
  EXPECT_EQ(text, "caf");
  EXPECT_EQ(Join(Deltas(stream, {Tok::kAcute})), "\xC3\xA9 au");
}

TEST(TextStreamTest, StopStringIsFoundAcrossTokens) {
  TextStream stream = Stream({.strings = {"STOP"}});
  EXPECT_EQ(Deltas(stream, Bytes("abSTOPcd")),
            (Strings{"a", "b", "", "", "", ""}));
  EXPECT_EQ(stream.matched_string(), "STOP");
  EXPECT_EQ(stream.num_tokens(), 6);
}

TEST(TextStreamTest, StopStringWithinOneTokenCutsIt) {
  TextStream stream = Stream({.strings = {"th"}});
  EXPECT_EQ(Deltas(stream, {Tok::kThe, Tok::kThe}), (Strings{" "}));
}

TEST(TextStreamTest, StopStringIsIncludedIfAskedFor) {
  TextStream stream = Stream({.strings = {"th"}, .include_string = true});
  EXPECT_EQ(Deltas(stream, {Tok::kThe}), (Strings{" th"}));
}

TEST(TextStreamTest, FalseBeginningGoesOutWhenItIsKnownToBeOne) {
  TextStream stream = Stream({.strings = {"abc"}});
  EXPECT_EQ(Deltas(stream, Bytes("abx")), (Strings{"", "", "abx", ""}));
}

TEST(TextStreamTest, BeginningWithinABeginningIsKept) {
  TextStream stream = Stream({.strings = {"aab"}});
  EXPECT_EQ(Deltas(stream, Bytes("aaab")), (Strings{"", "", "a", ""}));
  EXPECT_EQ(stream.matched_string(), "aab");
}

TEST(TextStreamTest, HeldBackTextGoesOutAtTheEnd) {
  TextStream stream = Stream({.strings = {"abc"}});
  EXPECT_EQ(Deltas(stream, Bytes("xab")), (Strings{"x", "", "", "ab"}));
}

TEST(TextStreamTest, StopStringThatIsCompleteFirstWins) {
  TextStream stream = Stream({.strings = {"abcd", "bc"}});
  EXPECT_EQ(Join(Deltas(stream, Bytes("xabcd"))), "xa");
  EXPECT_EQ(stream.matched_string(), "bc");
}

TEST(TextStreamTest, OfStopStringsThatEndTogetherTheLongestWins) {
  for (const Strings& order : {Strings{"bc", "abc"}, Strings{"abc", "bc"}}) {
    TextStream stream = Stream({.strings = order});
    EXPECT_EQ(Join(Deltas(stream, Bytes("xabc"))), "x");
    EXPECT_EQ(stream.matched_string(), "abc");
  }
}

TEST(TextStreamTest, StopStringsDoNotCountBeforeMinTokens) {
  TextStream stream = Stream({.strings = {"ab"}, .min_tokens = 3});
  EXPECT_EQ(Join(Deltas(stream, Bytes("ababab"))), "ab");
  EXPECT_EQ(stream.num_tokens(), 4);
}

TEST(TextStreamTest, StopStringMayBeginBeforeMinTokens) {
  TextStream stream = Stream({.strings = {"abc"}, .min_tokens = 2});
  EXPECT_EQ(Deltas(stream, Bytes("abc")), (Strings{"", "", ""}));
  EXPECT_EQ(stream.matched_string(), "abc");
}

TEST(TextStreamTest, HiddenTokensCountAndShowNothing) {
  TextStream stream = Stream();
  stream.AppendHidden();
  std::string text;
  stream.Finish(text);
  EXPECT_EQ(text, "");
  EXPECT_EQ(stream.num_tokens(), 1);
}

// --- Properties, on random tokens ---

std::vector<TokenId> RandomTokens(std::mt19937& random, int count) {
  // Few letters, so that stop strings occur; bytes of "é" and "😀", whole and
  // in pieces; special tokens.
  const std::vector<TokenId> choices = {
      Tok::Byte('a'),    Tok::Byte('b'),    Tok::Byte('a'),
      Tok::Byte(' '),    Tok::Byte('\xC3'), Tok::Byte('\xA9'),
      Tok::Byte('\xF0'), Tok::Byte('\x9F'), Tok::Byte('\x98'),
      Tok::Byte('\x80'), Tok::kThe,         Tok::kCafe,
      Tok::kAcute,       Tok::kBos,         Tok::kEos};
  std::vector<TokenId> tokens;
  for (int i = 0; i < count; ++i) {
    tokens.push_back(choices[random() % choices.size()]);
  }
  return tokens;
}

std::vector<TokenId> Concat(std::vector<TokenId> a,
                            const std::vector<TokenId>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

TEST(TextStreamPropertyTest, DeltasConcatenateToTheDecodedText) {
  std::mt19937 random(1);
  for (int round = 0; round < 2000; ++round) {
    const auto prompt = RandomTokens(random, static_cast<int>(random() % 4));
    const auto output = RandomTokens(random, static_cast<int>(random() % 12));
    TextStream stream(Tokens(), {.strings = {"never there"}});
    std::string text;
    stream.Prompt(prompt, /*echo=*/true, text);
    text += Join(Deltas(stream, output));
    ASSERT_EQ(text, Tokens().Decode(Concat(prompt, output), false));
  }
}

TEST(TextStreamPropertyTest, WithoutEchoTheTextContinuesThePrompt) {
  std::mt19937 random(2);
  for (int round = 0; round < 2000; ++round) {
    // A prompt of whole characters, as text gives it.
    const auto prompt = Bytes(std::string("ab ", random() % 4));
    const auto output = RandomTokens(random, static_cast<int>(random() % 12));
    TextStream stream(Tokens(), {});
    std::string text;
    stream.Prompt(prompt, /*echo=*/false, text);
    text += Join(Deltas(stream, output));
    ASSERT_EQ(Tokens().Decode(prompt, false) + text,
              Tokens().Decode(Concat(prompt, output), false));
  }
}

// The definition, byte by byte.
std::string CutAtFirstStop(const std::string& text, const Strings& stops) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& stop : stops) {
      if (stop.size() <= end && stop.size() > longest &&
          text.compare(end - stop.size(), stop.size(), stop) == 0) {
        longest = stop.size();
      }
    }
    if (longest > 0) return text.substr(0, end - longest);
  }
  return text;
}

TEST(TextStreamPropertyTest, StopStringsCutWhereverTokensBeginAndEnd) {
  std::mt19937 random(3);
  const Strings all = {"ab",  "aba", "baa",      "b t",       "aab",
                       "the", "e a", "\xC3\xA9", "\xA9 au a", "bb"};
  for (int round = 0; round < 5000; ++round) {
    Strings stops;
    for (const std::string& stop : all) {
      if (random() % 4 == 0) stops.push_back(stop);
    }
    const auto output = RandomTokens(random, static_cast<int>(random() % 16));
    TextStream stream = Stream({.strings = stops});
    const std::string whole =
        Tokens().Decode(Concat(Bytes("p"), output), false).substr(1);
    ASSERT_EQ(Join(Deltas(stream, output)), CutAtFirstStop(whole, stops));
  }
}

TEST(TextStreamPropertyTest, EveryDeltaIsWholeCharacters) {
  std::mt19937 random(4);
  for (int round = 0; round < 2000; ++round) {
    TextStream stream = Stream({.strings = {"ab", "\xC3\xA9 a"}});
    for (const std::string& delta : Deltas(stream, RandomTokens(random, 12))) {
      ASSERT_EQ(Tokens().Decode(Bytes("p" + delta), false), "p" + delta);
    }
  }
}

}  // namespace
}  // namespace binarymos
