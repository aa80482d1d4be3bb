// Bytes in, whole UTF-8 characters out.
#pragma once

#include <string>
#include <string_view>

namespace binarymos {

// Holds back the bytes of a character that is not complete yet. A byte that
// cannot be part of one becomes U+FFFD, each on its own, as Tokenizer::Decode
// writes it.
class Utf8Assembler {
 public:
  // Appends the characters that `bytes` complete to `text`.
  void Append(std::string_view bytes, std::string& text);

  // The input has ended: bytes still held back become U+FFFD.
  void Finish(std::string& text);

 private:
  std::string pending_;  // at most 3 bytes, the beginning of a character
};

}  // namespace binarymos
