// A tokenizer.model without training: bytes, printable ASCII, common English
// words, and pronounceable filler up to any size. Included by synthesize.cc.
#pragma once

#include <bit>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_format.h"

namespace binarymos::internal {

// Writes fields of a protobuf message.
class ProtoWriter {
 public:
  void Varint(uint32_t number, uint64_t value) {
    Raw(uint64_t{number} << 3);
    Raw(value);
  }
  void Float(uint32_t number, float value) {
    Raw(uint64_t{number} << 3 | 5);
    const auto bits = std::bit_cast<uint32_t>(value);
    for (int i = 0; i < 4; ++i) {
      bytes_ += static_cast<char>(bits >> (8 * i) & 0xff);
    }
  }
  void Bytes(uint32_t number, std::string_view value) {
    Raw(uint64_t{number} << 3 | 2);
    Raw(value.size());
    bytes_ += value;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  void Raw(uint64_t value) {
    for (; value >= 0x80; value >>= 7) {
      bytes_ += static_cast<char>((value & 0x7f) | 0x80);
    }
    bytes_ += static_cast<char>(value);
  }

  std::string bytes_;
};

// Builds the serialized ModelProto of a BPE model with byte fallback, whose
// first tokens are LLaMA's: 0 <unk>, 1 <s>, 2 </s>, 3 to 258 the bytes.
class SyntheticTokenizer {
 public:
  // REQUIRES: kMinSyntheticVocab <= vocab_size (synthesize.h).
  static std::string Build(int vocab_size) {
    SyntheticTokenizer tokenizer(vocab_size);
    tokenizer.AddReserved();
    tokenizer.AddCharacters();
    tokenizer.AddWords();
    tokenizer.AddFiller();
    return tokenizer.Finish();
  }

 private:
  // Types of pieces in sentencepiece's schema.
  enum Type { kNormal = 1, kUnknown = 2, kControl = 3, kByte = 6 };

  static constexpr std::string_view kBoundary = "\xe2\x96\x81";  // U+2581
  static constexpr const char* kWords[] = {
      "the",   "of",    "and",    "to",     "in",     "is",     "was",
      "he",    "she",   "it",     "that",   "for",    "on",     "with",
      "as",    "his",   "her",    "they",   "at",     "be",     "this",
      "from",  "have",  "had",    "not",    "but",    "said",   "you",
      "all",   "were",  "when",   "we",     "there",  "can",    "an",
      "your",  "which", "their",  "will",   "one",    "little", "day",
      "time",  "upon",  "once",   "girl",   "boy",    "dog",    "cat",
      "house", "tree",  "river",  "went",   "saw",    "very",   "happy",
      "big",   "play",  "friend", "mother", "father", "water",  "light",
      "world", "hello", "people", "good",   "old",    "young",  "night",
      "came"};

  explicit SyntheticTokenizer(int vocab_size) : vocab_size_(vocab_size) {}

  bool full() const { return static_cast<int>(seen_.size()) == vocab_size_; }

  void Add(std::string text, Type type = kNormal) {
    if (full() || !seen_.insert(text).second) return;
    ProtoWriter piece;
    piece.Bytes(1, text);
    // BPE merges the pair with the best score first: earlier pieces win.
    piece.Float(2, type == kNormal ? -static_cast<float>(seen_.size()) : 0.0f);
    piece.Varint(3, type);
    model_.Bytes(1, piece.bytes());
  }

  void AddReserved() {
    Add("<unk>", kUnknown);
    Add("<s>", kControl);
    Add("</s>", kControl);
    for (int byte = 0; byte < 256; ++byte) {
      Add(absl::StrFormat("<0x%02X>", byte), kByte);
    }
  }

  void AddCharacters() {
    Add(std::string(kBoundary));
    for (char c = '!'; c <= '~'; ++c) Add(std::string(1, c));
  }

  // A word is reached by merging its characters from left to right.
  void AddWords() {
    for (const std::string_view word : kWords) {
      for (size_t length = 1; length <= word.size(); ++length) {
        Add(std::string(kBoundary) + std::string(word.substr(0, length)));
      }
    }
  }

  // Syllables, then words of two and three of them.
  void AddFiller() {
    std::vector<std::string> syllables;
    for (const char consonant : std::string_view("tnrsldmkbpgfvwhzjycq")) {
      for (const char vowel : std::string_view("aeiou")) {
        syllables.push_back({consonant, vowel});
        Add(syllables.back());
      }
    }
    for (const std::string& first : syllables) {
      for (const std::string& second : syllables) {
        Add(std::string(kBoundary) + first + second);
        if (full()) return;
      }
    }
    for (const std::string& first : syllables) {
      for (const std::string& second : syllables) {
        for (const std::string& third : syllables) {
          Add(std::string(kBoundary) + first + second + third);
          if (full()) return;
        }
      }
    }
    // More than a million: numbers.
    for (int i = 0; !full(); ++i) {
      Add(absl::StrFormat("%s#%d", kBoundary, i));
    }
  }

  std::string Finish() {
    ProtoWriter trainer;
    trainer.Varint(3, 2);  // model_type: BPE
    trainer.Varint(4, static_cast<uint64_t>(vocab_size_));
    trainer.Varint(35, 1);  // byte_fallback
    model_.Bytes(2, trainer.bytes());
    ProtoWriter normalizer;
    normalizer.Bytes(1, "identity");
    normalizer.Varint(3, 1);  // add_dummy_prefix
    normalizer.Varint(4, 0);  // remove_extra_whitespaces
    normalizer.Varint(5, 1);  // escape_whitespaces
    model_.Bytes(3, normalizer.bytes());
    return model_.bytes();
  }

  const int vocab_size_;
  std::set<std::string> seen_;
  ProtoWriter model_;
};

}  // namespace binarymos::internal
