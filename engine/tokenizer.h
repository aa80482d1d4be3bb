// Text to token ids and back.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/api/types.h"

namespace binarymos {

// Immutable and thread-safe. Implementation: sentencepiece, behind
// tokenizer.cc; tests may bring their own.
class Tokenizer {
 public:
  // Reads `<model_dir>/tokenizer.model` after a bounded check of its structure.
  // NOT_FOUND, or INVALID_ARGUMENT naming what is wrong with the file.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(
      const std::string& model_dir);

  virtual ~Tokenizer() = default;

  virtual int vocab_size() const = 0;
  virtual TokenId bos() const = 0;  // kNoToken if the model has none
  virtual TokenId eos() const = 0;

  // INVALID_ARGUMENT if `text` is not UTF-8.
  virtual absl::StatusOr<std::vector<TokenId>> Encode(std::string_view text,
                                                      bool add_bos) const = 0;

  // The bytes that `token` adds to a text when it follows other tokens: a
  // leading word boundary is a space, a byte token is one byte, which may be
  // part of a UTF-8 character. Control tokens add nothing unless
  // `keep_special`. REQUIRES: 0 <= token < vocab_size().
  virtual std::string Piece(TokenId token, bool keep_special) const = 0;

  // Concatenated pieces without the space that sentencepiece puts before the
  // first word. Bytes that are not UTF-8 become U+FFFD.
  // REQUIRES: 0 <= token < vocab_size() for every token.
  virtual std::string Decode(const std::vector<TokenId>& tokens,
                             bool keep_special) const = 0;
};

}  // namespace binarymos
