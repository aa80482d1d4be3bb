#include "engine/tokenizer.h"

#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <thread>

#include "engine/synthetic_tokenizer.h"
#include "engine/tokenizer_check.h"
#include "engine/utf8.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/temp_dir.h"

// As in engine/tokenizer.cc.
#define absl sentencepiece_absl
#include <sentencepiece_trainer.h>
#undef absl

namespace binarymos {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::TestWithParam;
using ::testing::ValuesIn;

constexpr int kVocab = 512;

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadFrom(const std::string& model) {
  const TempDir dir;
  dir.Write("tokenizer.model", model);
  return Tokenizer::Load(dir.path());
}

std::unique_ptr<Tokenizer> LoadOrDie(const std::string& model) {
  auto tokenizer = LoadFrom(model);
  BINARYMOS_CHECK(tokenizer.ok()) << tokenizer.status().message();
  return *std::move(tokenizer);
}

// A sentencepiece model, piece by piece.
class ModelBuilder {
 public:
  // Reserved tokens, bytes, word boundary and printable ASCII, by default.
  ModelBuilder() {
    Piece("<unk>", 2);
    Piece("<s>", 3);
    Piece("</s>", 3);
    for (int byte = 0; byte < 256; ++byte) {
      Piece(absl::StrFormat("<0x%02X>", byte), 6);
    }
    Piece("\xe2\x96\x81", 1);
    for (char c = '!'; c <= '~'; ++c) Piece(std::string(1, c), 1);
    trainer.Varint(3, 2);
    trainer.Varint(35, 1);
    normalizer.Varint(4, 0);
  }

  void Piece(const std::string& text, uint64_t type, float score = 0) {
    internal::ProtoWriter piece;
    piece.Bytes(1, text);
    piece.Float(2, score);
    piece.Varint(3, type);
    pieces.push_back(piece.bytes());
  }

  std::string Build() const {
    internal::ProtoWriter model;
    for (const std::string& piece : pieces) model.Bytes(1, piece);
    model.Bytes(2, trainer.bytes());
    model.Bytes(3, normalizer.bytes());
    return model.bytes() + extra.bytes();
  }

  std::vector<std::string> pieces;  // serialized
  internal::ProtoWriter trainer;
  internal::ProtoWriter normalizer;
  internal::ProtoWriter extra;  // further fields of the model
};

// --- Encoding and decoding ---

class TokenizerTest : public ::testing::Test {
 protected:
  std::string RoundTrip(const std::string& text) {
    const auto tokens = tokenizer_->Encode(text, /*add_bos=*/true);
    BINARYMOS_CHECK(tokens.ok()) << tokens.status().message();
    return tokenizer_->Decode(*tokens, /*keep_special=*/false);
  }

  std::unique_ptr<Tokenizer> tokenizer_ =
      LoadOrDie(internal::SyntheticTokenizer::Build(kVocab));
};

TEST_F(TokenizerTest, KnowsItsVocabulary) {
  EXPECT_EQ(tokenizer_->vocab_size(), kVocab);
  EXPECT_EQ(tokenizer_->bos(), 1);
  EXPECT_EQ(tokenizer_->eos(), 2);
}

TEST_F(TokenizerTest, TextSurvivesTheRoundTrip) {
  for (const std::string text :
       {"", "hello", "Once upon a time there was a dog.", " two  spaces ",
        "tabs\tand\nlines\n", "Grüße, 你好, 🙂!", "\xe2\x96\x81",
        "<s>"}) {
    // A boundary symbol in the text is the boundary of a word.
    const std::string expected = text == "\xe2\x96\x81" ? " " : text;
    EXPECT_EQ(RoundTrip(text), expected);
  }
  EXPECT_EQ(RoundTrip(std::string("a\0b", 3)), std::string("a\0b", 3));
}

TEST_F(TokenizerTest, UsesWordsWhereItHasThem) {
  const auto tokens = tokenizer_->Encode("the the", /*add_bos=*/false);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  ASSERT_EQ(tokens->size(), 2u);
  EXPECT_EQ((*tokens)[0], (*tokens)[1]);
  EXPECT_EQ(tokenizer_->Piece((*tokens)[0], false), " the");
}

TEST_F(TokenizerTest, AddsTheStartTokenOnlyWhenAsked) {
  EXPECT_THAT(*tokenizer_->Encode("", true), ElementsAre(1));
  EXPECT_THAT(*tokenizer_->Encode("", false), ElementsAre());
  const auto with = *tokenizer_->Encode("hello", true);
  auto without = *tokenizer_->Encode("hello", false);
  without.insert(without.begin(), 1);
  EXPECT_EQ(with, without);
}

TEST_F(TokenizerTest, FallsBackToBytes) {
  const auto tokens = tokenizer_->Encode("ü", /*add_bos=*/false);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_THAT(*tokens, ElementsAre(259, 3 + 0xc3, 3 + 0xbc));
  EXPECT_EQ(tokenizer_->Piece(3 + 0xc3, false), "\xc3");
}

TEST_F(TokenizerTest, RefusesTextThatIsNotUtf8) {
  for (const char* text : {"\xff", "a\xc3", "\xed\xa0\x80", "\xc0\x80"}) {
    const auto tokens = tokenizer_->Encode(text, /*add_bos=*/false);
    EXPECT_EQ(tokens.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(tokens.status().message()), HasSubstr("UTF-8"));
  }
}

TEST_F(TokenizerTest, SpecialTokensAreSilentUnlessKept) {
  for (const TokenId token : {0, 1, 2}) {
    EXPECT_EQ(tokenizer_->Piece(token, false), "");
  }
  EXPECT_EQ(tokenizer_->Piece(0, true), "<unk>");
  EXPECT_EQ(tokenizer_->Piece(2, true), "</s>");
  const auto tokens = *tokenizer_->Encode("hello", true);
  EXPECT_EQ(tokenizer_->Decode(tokens, true), "<s>hello");
}

TEST_F(TokenizerTest, DecodeDropsOneLeadingSpaceAndPieceKeepsIt) {
  const auto tokens = *tokenizer_->Encode("the the", false);
  EXPECT_EQ(tokenizer_->Decode(tokens, false), "the the");
  EXPECT_EQ(tokenizer_->Decode({259, 259}, false), " ");
  // The byte 0x20 is text, not a boundary.
  EXPECT_EQ(tokenizer_->Decode({3 + 0x20, 259}, false), "  ");
}

TEST_F(TokenizerTest, DecodeReplacesBytesThatAreNotUtf8) {
  const std::string replacement = "\xef\xbf\xbd";
  EXPECT_EQ(tokenizer_->Decode({3 + 0xc3, 3 + 0x41}, false), replacement + "A");
  EXPECT_EQ(tokenizer_->Decode({3 + 0xe2, 3 + 0x82}, false),
            replacement + replacement);
  EXPECT_EQ(tokenizer_->Decode({3 + 0xe2, 3 + 0x82, 3 + 0xac}, false), "€");
}

TEST_F(TokenizerTest, AllPiecesTogetherMakeTheDecodedText) {
  const std::string text = "Once upon a time, ü €";
  std::string pieces;
  const auto tokens = *tokenizer_->Encode(text, true);
  for (const TokenId token : tokens) {
    pieces += tokenizer_->Piece(token, false);
  }
  EXPECT_EQ(pieces, " " + text);
}

TEST_F(TokenizerTest, ManyThreadsMayEncodeAtOnce) {
  const std::string text = "Once upon a time there was a little dog. Grüße!";
  const auto expected = *tokenizer_->Encode(text, true);
  std::vector<std::thread> threads;
  std::vector<int> num_equal(4, 0);
  for (int& count : num_equal) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) {
        const auto tokens = *tokenizer_->Encode(text, true);
        const bool same =
            tokens == expected && tokenizer_->Decode(tokens, false) == text;
        count += same ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(num_equal, ElementsAre(50, 50, 50, 50));
}

TEST_F(TokenizerTest, RandomTextSurvivesTheRoundTrip) {
  std::mt19937 random(7);
  for (int i = 0; i < 200; ++i) {
    std::string text;
    while (text.size() < 40) {
      const char32_t c =
          random() % 4 == 0 ? random() % 0x10ffff : U' ' + random() % 95;
      std::string utf8;
      if (c < 0x80) {
        utf8 = {static_cast<char>(c)};
      } else if (c < 0x800) {
        utf8 = {static_cast<char>(0xc0 | c >> 6),
                static_cast<char>(0x80 | (c & 63))};
      } else if (c < 0x10000) {
        utf8 = {static_cast<char>(0xe0 | c >> 12),
                static_cast<char>(0x80 | (c >> 6 & 63)),
                static_cast<char>(0x80 | (c & 63))};
      } else {
        utf8 = {static_cast<char>(0xf0 | c >> 18),
                static_cast<char>(0x80 | (c >> 12 & 63)),
                static_cast<char>(0x80 | (c >> 6 & 63)),
                static_cast<char>(0x80 | (c & 63))};
      }
      if (IsUtf8(utf8)) text += utf8;  // not a surrogate
    }
    EXPECT_EQ(RoundTrip(text), text);
  }
}

TEST(TokenizerFileTest, SaysThatThereIsNoTokenizer) {
  const TempDir dir;
  const auto tokenizer = Tokenizer::Load(dir.path());
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(tokenizer.status().message()),
              HasSubstr("tokenizer.model"));
}

TEST(TokenizerFileTest, HasNoStartTokenIfTheModelHasNone) {
  ModelBuilder model;
  model.pieces.erase(model.pieces.begin() + 1, model.pieces.begin() + 3);
  const auto tokenizer = LoadOrDie(model.Build());
  EXPECT_EQ(tokenizer->bos(), kNoToken);
  EXPECT_EQ(tokenizer->eos(), kNoToken);
  EXPECT_EQ(*tokenizer->Encode("a", true), *tokenizer->Encode("a", false));
}

TEST(TokenizerFileTest, KeepsALeadingSpaceThatTheModelDoesNotAdd) {
  ModelBuilder model;
  model.normalizer.Varint(3, 0);  // add_dummy_prefix
  const auto tokenizer = LoadOrDie(model.Build());
  EXPECT_EQ(tokenizer->Decode(*tokenizer->Encode(" a", false), false), " a");
  EXPECT_EQ(tokenizer->Decode(*tokenizer->Encode("a", false), false), "a");
}

// --- A character map ---

// A double array in which every node has a block of 256 units for itself.
class TrieBuilder {
 public:
  static constexpr uint32_t kUnused = 0x80000000u;  // matches no label

  TrieBuilder() : units(512, kUnused) { units[0] = 256u << 10; }

  void Rule(const std::string& from, uint32_t value) {
    uint32_t base = 256;
    uint32_t* unit = nullptr;
    for (const char c : from) {
      const uint32_t index = base + static_cast<uint8_t>(c);
      if (units[index] == kUnused) {
        const auto child = static_cast<uint32_t>(units.size());
        units.resize(units.size() + 256, kUnused);
        units[index] = (index ^ child) << 10 | static_cast<uint8_t>(c);
      }
      unit = &units[index];
      base = index ^ *unit >> 10;
    }
    *unit |= 1u << 8;
    units[base] = value | 0x80000000u;
  }

  std::string Map(const std::string& replacements) const {
    const auto bytes = static_cast<uint32_t>(units.size() * 4);
    std::string map(4 + bytes, '\0');
    std::memcpy(map.data(), &bytes, 4);
    std::memcpy(map.data() + 4, units.data(), bytes);
    return map + replacements;
  }

  std::vector<uint32_t> units;
};

std::string WithMap(const std::string& map) {
  ModelBuilder model;
  model.normalizer.Bytes(2, map);
  return model.Build();
}

const std::string kReplacements = std::string("x\0yy\0", 5);

TEST(CharsMapTest, ASoundMapIsUsed) {
  TrieBuilder trie;
  trie.Rule("a", 0);
  trie.Rule("abc", 2);
  const auto tokenizer = LoadOrDie(WithMap(trie.Map(kReplacements)));
  EXPECT_EQ(*tokenizer->Encode("abcab", false),
            *tokenizer->Encode("yyxb", false));
}

TEST(CharsMapTest, RulesMayShareTheirEnds) {
  TrieBuilder trie;
  trie.Rule("ab", 2);
  constexpr uint32_t kC = 256 + 'c';
  trie.units[kC] = (512u ^ kC) << 10 | 'c';
  const auto tokenizer = LoadOrDie(WithMap(trie.Map(kReplacements)));
  EXPECT_EQ(*tokenizer->Encode("cb", false), *tokenizer->Encode("yy", false));
}

TEST(CharsMapTest, ThirtyTwoNestedRulesAreTheMost) {
  TrieBuilder trie;
  std::string from;
  for (int i = 0; i < 32; ++i) trie.Rule(from += "a", 0);
  const auto tokenizer = LoadOrDie(WithMap(trie.Map(kReplacements)));
  EXPECT_EQ(*tokenizer->Encode(std::string(33, 'a'), false),
            *tokenizer->Encode("xx", false));
  trie.Rule(from += "a", 0);
  EXPECT_THAT(
      std::string(
          LoadFrom(WithMap(trie.Map(kReplacements))).status().message()),
      HasSubstr("more than 32 of its rules begin with one another"));
}

// Two sentences, again and again.
class Sentences : public sentencepiece::SentenceIterator {
 public:
  bool done() const override { return next_ == 200; }
  void Next() override { ++next_; }
  const std::string& value() const override { return text_[next_ % 2]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::string text_[2] = {"once upon a time there was a little dog",
                                "the dog went to the river and was happy"};
  int next_ = 0;
};

// The check must not refuse what sentencepiece itself writes, least of all the
// character maps of its built-in rules.
TEST(CharsMapTest, ModelsThatSentencePieceTrainsAreSound) {
  for (const char* type : {"bpe", "unigram"}) {
    for (const char* rule : {"identity", "nmt_nfkc", "nfkc_cf"}) {
      Sentences sentences;
      std::string model;
      const auto status = sentencepiece::SentencePieceTrainer::Train(
          absl::StrFormat("--model_type=%s --normalization_rule_name=%s "
                          "--vocab_size=300 --byte_fallback=true "
                          "--hard_vocab_limit=false --minloglevel=2",
                          type, rule),
          &sentences, &model);
      ASSERT_TRUE(status.ok()) << status.ToString();
      const auto tokenizer = LoadFrom(model);
      ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
      const auto tokens = (*tokenizer)->Encode("the ｄｏｇ", false);
      ASSERT_TRUE(tokens.ok()) << tokens.status();
      EXPECT_EQ((*tokenizer)->Decode(*tokens, false),
                rule == std::string("identity") ? "the ｄｏｇ" : "the dog");
    }
  }
}

// --- Malformed models ---

struct MalformedTokenizer {
  std::string name;
  std::string model;
  std::string message;  // substring
};

void PrintTo(const MalformedTokenizer& malformed, std::ostream* out) {
  *out << malformed.name;
}

MalformedTokenizer Changed(std::string name,
                           const std::function<void(ModelBuilder&)>& change,
                           std::string message) {
  ModelBuilder model;
  change(model);
  return {std::move(name), model.Build(), std::move(message)};
}

// A piece with these fields is added.
MalformedTokenizer BadPiece(
    std::string name, const std::function<void(internal::ProtoWriter&)>& write,
    std::string message) {
  return Changed(
      "Piece" + std::move(name),
      [&](ModelBuilder& model) {
        internal::ProtoWriter piece;
        write(piece);
        model.pieces.push_back(piece.bytes());
      },
      "piece 354: " + message);
}

MalformedTokenizer BadText(std::string name, const std::string& text,
                           std::string message) {
  return BadPiece(
      "Text" + std::move(name),
      [&](internal::ProtoWriter& piece) { piece.Bytes(1, text); },
      std::move(message));
}

MalformedTokenizer BadMap(std::string name, const std::string& map,
                          std::string message) {
  return {"Map" + std::move(name), WithMap(map),
          "normalizer_spec: precompiled_charsmap: " + std::move(message)};
}

// `change` works on a trie with the rules a → x and ab → yy.
MalformedTokenizer BadTrie(std::string name,
                           const std::function<void(TrieBuilder&)>& change,
                           std::string message) {
  TrieBuilder trie;
  trie.Rule("a", 0);
  trie.Rule("ab", 2);
  change(trie);
  return BadMap("Trie" + std::move(name), trie.Map(kReplacements),
                std::move(message));
}

std::string Word(uint32_t value) {
  std::string bytes(4, '\0');
  std::memcpy(bytes.data(), &value, 4);
  return bytes;
}

std::vector<MalformedTokenizer> StructureCases() {
  const std::string sound = ModelBuilder().Build();
  const auto drop = [](size_t piece) {
    return [piece](ModelBuilder& model) {
      model.pieces.erase(model.pieces.begin() + static_cast<int>(piece));
    };
  };
  return {
      {"IsEmpty", "", "expected pieces, found none"},
      {"IsText", "not a model", "field 13 has wire type 6"},
      {"HasFieldZero", std::string(2, '\0'), "a field has no valid tag"},
      {"HasAnEndlessTag", std::string(20, '\xff'), "a field has no valid tag"},
      {"HasAGroup", "\x0b", "field 1 has wire type 3"},
      {"HasAnEndlessVarint", "\x08" + std::string(11, '\x80'),
       "field 1 is truncated"},
      {"HasALengthBeyondTheFile",
       "\x0a\x05"
       "abc",
       "field 1 is truncated"},
      {"HasALengthOf2To64", "\x0a" + std::string(9, '\xff') + "\x01",
       "field 1 is truncated"},
      {"HasATruncatedFloat", "\x0d\x01", "field 1 is truncated"},
      {"HasATruncatedDouble", "\x09\x01", "field 1 is truncated"},
      {"IsTruncated", sound.substr(0, sound.size() - 1), "is truncated"},
      Changed(
          "HasTwoTrainers",
          [](ModelBuilder& model) { model.extra.Bytes(2, ""); },
          "trainer_spec: field 2 stands twice"),
      Changed(
          "HasTwoNormalizers",
          [](ModelBuilder& model) { model.extra.Bytes(3, ""); },
          "normalizer_spec: field 3 stands twice"),
      Changed(
          "HasANumberAsNormalizer",
          [](ModelBuilder& model) { model.extra.Varint(5, 1); },
          "denormalizer_spec: field 5 has wire type 0, expected 2"),
      Changed(
          "HasAHugeNormalizer",
          [](ModelBuilder& model) {
            model.extra.Bytes(5, std::string((16 << 20) + 1, ' '));
          },
          "denormalizer_spec has 16777217 bytes, expected at most 16777216"),
      Changed(
          "HasAHugeSelfTest",
          [](ModelBuilder& model) {
            model.extra.Bytes(4, std::string((16 << 20) + 1, ' '));
          },
          "self_test_data has 16777217 bytes"),
      Changed(
          "HasABadDenormalizer",
          [](ModelBuilder& model) {
            internal::ProtoWriter spec;
            spec.Bytes(2, "x");
            model.extra.Bytes(5, spec.bytes());
          },
          "denormalizer_spec: precompiled_charsmap: it has 1 bytes"),
      Changed(
          "IsAWordModel",
          [](ModelBuilder& model) {
            model.trainer = {};
            model.trainer.Varint(3, 3);
            model.trainer.Varint(35, 1);
          },
          "trainer_spec: model_type is 3, expected 1 (unigram) or 2 (BPE)"),
      Changed(
          "HasTwoModelTypes",
          [](ModelBuilder& model) { model.trainer.Varint(3, 2); },
          "trainer_spec: field 3 stands twice"),
      Changed(
          "HasWhitespaceAsSuffix",
          [](ModelBuilder& model) { model.trainer.Varint(24, 1); },
          "trainer_spec: treat_whitespace_as_suffix is set"),
      Changed(
          "HasTwoMaps",
          [](ModelBuilder& model) {
            model.normalizer.Bytes(2, "");
            model.normalizer.Bytes(2, "x");
          },
          "precompiled_charsmap: field 2 stands twice"),
      Changed(
          "HasAFlagOfBytes",
          [](ModelBuilder& model) { model.normalizer.Bytes(3, "x"); },
          "normalizer_spec: field 3 has wire type 2, expected 0"),
      Changed("HasNoUnknown", drop(0),
              "found 0 pieces of type unknown, expected one"),
      Changed(
          "HasTwoUnknowns",
          [](ModelBuilder& model) { model.Piece("<unk2>", 2); },
          "found 2 pieces of type unknown, expected one"),
      Changed(
          "HasNoNormalPieces",
          [](ModelBuilder& model) { model.pieces.resize(259); },
          "expected pieces of type normal"),
      Changed("LacksAByte", drop(100), "found 255 byte pieces, expected 256"),
      Changed(
          "HasBytesWithoutFallback",
          [](ModelBuilder& model) {
            model.trainer = {};
            model.trainer.Varint(3, 2);
          },
          "piece 3 is a byte, but trainer_spec.byte_fallback is false"),
      Changed(
          "HasAByteOfThreeDigits",
          [](ModelBuilder& model) { model.Piece("<0x100>", 6); },
          "piece 354: expected a byte piece like <0x0A>"),
      Changed(
          "HasAByteInLowerCase",
          [](ModelBuilder& model) { model.Piece("<0xab>", 6); },
          "piece 354: expected a byte piece"),
      Changed(
          "HasAByteTwice",
          [](ModelBuilder& model) { model.Piece("<0x41>", 6); },
          "piece 354 stands twice"),
      Changed(
          "HasAPieceTwice", [](ModelBuilder& model) { model.Piece("a", 4); },
          "the piece \"a\" stands twice"),
      Changed(
          "HasNestedSymbols",
          [](ModelBuilder& model) {
            for (size_t n = 2; n <= 66; ++n)
              model.Piece(std::string(n, '='), 4);
          },
          "more than 64 user-defined pieces begin with one another"),
  };
}

std::vector<MalformedTokenizer> PieceCases() {
  return {
      BadPiece(
          "IsEmpty", [](internal::ProtoWriter& piece) { piece.Varint(3, 1); },
          "it is empty"),
      BadPiece(
          "IsTruncated",
          [](internal::ProtoWriter& piece) {
            internal::ProtoWriter inner;
            inner.Bytes(1, "abc");
            piece.Bytes(9, "");
            piece.Varint(1, 1);
          },
          "field 1 has wire type 0, expected 2"),
      BadPiece(
          "HasTwoTexts",
          [](internal::ProtoWriter& piece) {
            piece.Bytes(1, "one");
            piece.Bytes(1, "two");
          },
          "field 1 stands twice"),
      BadPiece(
          "HasAnIntegerScore",
          [](internal::ProtoWriter& piece) { piece.Varint(2, 1); },
          "field 2 has wire type 0, expected 5"),
      BadPiece(
          "HasAnInfiniteScore",
          [](internal::ProtoWriter& piece) { piece.Float(2, INFINITY); },
          "its score is not finite"),
      BadPiece(
          "HasNoNumberAsScore",
          [](internal::ProtoWriter& piece) { piece.Float(2, NAN); },
          "its score is not finite"),
      BadPiece(
          "HasTypeZero",
          [](internal::ProtoWriter& piece) { piece.Varint(3, 0); },
          "its type is 0, expected 1 to 6"),
      BadPiece(
          "HasTypeSeven",
          [](internal::ProtoWriter& piece) { piece.Varint(3, 7); },
          "its type is 7, expected 1 to 6"),
      // Would be 1 in 32 bits.
      BadPiece(
          "HasTypeOf33Bits",
          [](internal::ProtoWriter& piece) {
            piece.Varint(3, (uint64_t{1} << 32) + 1);
          },
          "its type is 4294967297, expected 1 to 6"),
      BadText("IsLong", std::string(1025, 'x'),
              "it has 1025 bytes, expected at most 1024"),
      BadText("IsNotUtf8", "a\xff", "it is not UTF-8"),
      BadText("IsASurrogate", "\xed\xa0\x80", "it is not UTF-8"),
      BadText("HasAZeroByte", std::string("a\0b", 3),
              "it contains a zero byte"),
  };
}

std::vector<MalformedTokenizer> MapCases() {
  TrieBuilder trie;
  trie.Rule("a", 0);
  const std::string sound = trie.Map(kReplacements);
  return {
      BadMap("IsShort", "123", "it has 3 bytes, expected more than 4"),
      BadMap("HasATrieBeyondItself", Word(5) + "12345",
             "its trie has 5 bytes, expected fewer than 5"),
      BadMap("HasAHugeTrie", Word(UINT32_MAX) + "12345",
             "its trie has 4294967295 bytes"),
      BadMap("HasNoTrie", Word(0) + "x",
             "its trie has 0 bytes, expected a multiple of 4"),
      BadMap("HasAnOddTrie", Word(6) + "12345678",
             "its trie has 6 bytes, expected a multiple of 4"),
      BadMap("HasATinyTrie", Word(4) + Word(256u << 10) + "x",
             "its trie has 1 units and refers to unit 511"),
      BadTrie(
          "RootHasALeaf", [](TrieBuilder& t) { t.units[0] |= 1u << 8; },
          "the root of its trie is not a root"),
      // Would be taken for a leaf and still be followed.
      BadTrie(
          "RootLooksLikeALeaf",
          [](TrieBuilder& t) { t.units[0] |= 0x80000000u; },
          "the root of its trie is not a root"),
      BadTrie(
          "RootRefersOutside",
          [](TrieBuilder& t) { t.units[0] = 0x1fffffu << 10; },
          "its trie has 1024 units and refers to unit 2097151"),
      BadTrie(
          "RootRefersFarOutside",
          [](TrieBuilder& t) { t.units[0] = 0x1fffffu << 10 | 1u << 9; },
          "its trie has 1024 units and refers to unit 536870911"),
      BadTrie(
          "NodeRefersOutside",
          [](TrieBuilder& t) { t.units[256 + 'a'] |= 1024u << 10; },
          "its trie has 1024 units and refers to unit"),
      BadTrie(
          "NodeRefersToAncestor",
          [](TrieBuilder& t) {
            t.units[256 + 'a'] = (256u ^ (256 + 'a')) << 10 | 'a';
          },
          "its trie has a cycle"),
      BadTrie(
          "NodeRefersToItself",
          [](TrieBuilder& t) { t.units[768 + 'z'] = 'z' << 10 | 'z'; },
          "its trie has a cycle"),
      BadTrie(
          "RuleIsLong",
          [](TrieBuilder& t) { t.Rule(std::string(257, 'x'), 0); },
          "a rule is longer than 256 bytes"),
      BadTrie(
          "ValueIsOutside",
          [](TrieBuilder& t) { t.units[768] = 0x80000000u | 5; },
          "a rule refers to byte 5 of 5 bytes of replacements"),
      BadTrie(
          "ValueIsFarOutside",
          [](TrieBuilder& t) { t.units[768] = 0xffffffffu; },
          "a rule refers to byte 2147483647"),
      BadMap("ReplacementHasNoEnd", trie.Map("x"),
             "the replacement at byte 0 does not end within 1024 bytes"),
      BadMap("ReplacementIsLong",
             trie.Map(std::string(1025, 'x') + std::string(1, '\0')),
             "the replacement at byte 0 does not end within 1024 bytes"),
      BadMap("ReplacementIsNotUtf8", trie.Map(std::string("\xff\0", 2)),
             "the replacement at byte 0 is not UTF-8"),
  };
}

std::vector<MalformedTokenizer> AllCases() {
  std::vector<MalformedTokenizer> all;
  for (const auto& cases : {StructureCases(), PieceCases(), MapCases()}) {
    all.insert(all.end(), cases.begin(), cases.end());
  }
  return all;
}

class MalformedTokenizerTest : public TestWithParam<MalformedTokenizer> {};

TEST_P(MalformedTokenizerTest, IsRefusedBeforeSentencePieceSeesIt) {
  const auto facts = CheckTokenizerModel(GetParam().model, "tokenizer.model");
  EXPECT_EQ(facts.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(facts.status().message()),
              HasSubstr("tokenizer.model: "));
  EXPECT_THAT(std::string(facts.status().message()),
              HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(All, MalformedTokenizerTest, ValuesIn(AllCases()),
                         [](const auto& test) { return test.param.name; });

TEST(TokenizerCheckTest, RefusesMoreThanAMillionPieces) {
  std::string model;
  for (int i = 0; i < 1'000'001; ++i) model += "\x0a\x03\x0a\x01x";
  const auto facts = CheckTokenizerModel(model, "f");
  EXPECT_THAT(std::string(facts.status().message()),
              HasSubstr("expected at most 1000000 pieces"));
}

TEST(TokenizerCheckTest, SixtyFourNestedSymbolsAreTheMost) {
  ModelBuilder model;
  for (size_t n = 2; n <= 65; ++n) model.Piece(std::string(n, '='), 4);
  const auto tokenizer = LoadOrDie(model.Build());
  const std::string text(200, '=');
  EXPECT_EQ(tokenizer->Decode(*tokenizer->Encode(text, false), false), text);
}

TEST(TokenizerCheckTest, SkipsExtensions) {
  ModelBuilder model;
  model.extra.Bytes(200, "anything");
  EXPECT_EQ(LoadOrDie(model.Build())->vocab_size(), 354);
}

// What passes the check must load and tokenize, or be refused by sentencepiece
// with a status.
TEST(TokenizerCheckTest, FlippedBitsNeverCrash) {
  TrieBuilder trie;
  trie.Rule("a", 0);
  trie.Rule("ab", 2);
  trie.Rule("\xc3\xbc", 2);
  const std::string sound = WithMap(trie.Map(kReplacements));
  const size_t map =
      sound.size() - kReplacements.size() - trie.units.size() * 4 - 16;
  std::mt19937 random(3);
  int num_loaded = 0;
  for (int i = 0; i < 1500; ++i) {
    std::string damaged = sound;
    const bool anywhere = i % 2 == 0;
    for (int flips = 1 + i % 3; flips > 0; --flips) {
      const size_t at = anywhere ? random() % sound.size()
                                 : map + random() % (sound.size() - map);
      damaged[at] ^= static_cast<char>(1 << random() % 8);
    }
    if (!CheckTokenizerModel(damaged, "f").ok()) continue;
    if (num_loaded == 200) continue;  // loading takes milliseconds
    const auto tokenizer = LoadFrom(damaged);
    if (!tokenizer.ok()) continue;
    ++num_loaded;
    const auto tokens = (*tokenizer)->Encode("abab übü hello == \n", true);
    if (tokens.ok()) (*tokenizer)->Decode(*tokens, true);
  }
  EXPECT_GT(num_loaded, 50);
}

TEST(TokenizerCheckTest, TruncationNeverCrashes) {
  const std::string sound = internal::SyntheticTokenizer::Build(kVocab);
  for (size_t size = 0; size < sound.size(); ++size) {
    const auto facts = CheckTokenizerModel({sound.data(), size}, "f");
    // Cut between two fields, the rest may be a model without fallback.
    if (!facts.ok()) {
      EXPECT_EQ(facts.status().code(), absl::StatusCode::kInvalidArgument);
    }
  }
}

}  // namespace
}  // namespace binarymos
