// From the tokens of one sample to the text that its reader sees.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/api/types.h"
#include "engine/tokenizer.h"
#include "server/utf8_assembler.h"

namespace binarymos {

// Where the text of a sample ends.
struct TextStops {
  std::vector<std::string> strings;  // UTF-8, none empty
  bool include_string = false;       // end with the string, not before it
  // A string counts if the token that completes it has at least this many
  // others before it.
  int min_tokens = 0;
};

// Detokenizes incrementally. The text of all calls, concatenated, is what
// Decode(prompt + output) adds to Decode(prompt), whatever the tokens look
// like; with stop strings, that text up to the first one. First is the one that
// is complete first, and of those that end together the longest: where tokens
// begin and end does not matter.
//
// Text goes out as soon as it is certain: the bytes of an incomplete character
// and a tail that may be the beginning of a stop string are held back.
// Confined to one thread at a time.
class TextStream {
 public:
  // The tokenizer outlives this object.
  TextStream(const Tokenizer& tokenizer, TextStops stops);

  // The prompt comes first and once. With `echo` its text goes out before that
  // of the output; stop strings are not searched in it.
  void Prompt(std::span<const TokenId> tokens, bool echo, std::string& text);

  // The next output token. Returns whether it completed a stop string: then
  // `text` has got all there was, and the stream has ended.
  bool Append(TokenId token, std::string& text);

  // Counts a token whose text is not shown: EOS, or a stop token.
  void AppendHidden() { ++num_tokens_; }

  // There are no more tokens: what was held back goes out.
  void Finish(std::string& text);

  // Output tokens so far.
  int num_tokens() const { return num_tokens_; }
  // REQUIRES: Append returned true.
  const std::string& matched_string() const { return stops_.strings[match_]; }

 private:
  std::string NextPiece(TokenId token);
  bool Match(size_t num_old, std::string& text);
  size_t HeldBackBytes() const;

  const Tokenizer& tokenizer_;
  const TextStops stops_;

  bool at_text_start_ = true;  // the next piece loses its leading space
  int num_tokens_ = 0;
  Utf8Assembler characters_;
  std::string held_;  // characters that have not gone out
  size_t match_ = 0;  // index into stops_.strings
};

}  // namespace binarymos
