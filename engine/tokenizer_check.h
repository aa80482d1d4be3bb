// Decides whether a tokenizer.model is safe to hand to sentencepiece.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace binarymos {

// What the walk learned and sentencepiece's interface does not tell.
struct TokenizerFacts {
  int num_pieces = 0;
  // Whether encoding puts a space before the text, to be taken off again.
  bool adds_leading_space = true;
};

// Walks the serialized sentencepiece ModelProto with bounds on everything and
// checks what sentencepiece 0.1.97 takes for granted: types and counts of
// pieces, UTF-8, finite scores, byte pieces, and the normalizer's character
// map, whose double-array trie and replacement strings it follows without
// looking (CVE-2026-1260 is one way to make that a heap overflow). Reads only
// `model`; needs memory in proportion to it. INVALID_ARGUMENT, naming `file`
// and what is wrong.
absl::StatusOr<TokenizerFacts> CheckTokenizerModel(std::string_view model,
                                                   const std::string& file);

}  // namespace binarymos
