#include "engine/tokenizer.h"

#include <exception>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/core/check.h"
#include "engine/model/regular_file.h"
#include "engine/tokenizer_check.h"
#include "engine/utf8.h"

// Debian's header declares an absl::string_view of its own (std's), which would
// be ambiguous with Abseil's. Under another name it is the same type to the
// linker.
#define absl sentencepiece_absl
#include <sentencepiece_processor.h>
#undef absl

namespace binarymos {
namespace {

constexpr size_t kMaxModelBytes = 64 << 20;
// sentencepiece counts bytes, three for one, in int.
constexpr size_t kMaxTextBytes = 256 << 20;
constexpr char kWordBoundary[] = "\xe2\x96\x81";  // U+2581
constexpr char kReplacement[] = "\xef\xbf\xbd";   // U+FFFD

// What a token adds to a text.
struct TokenText {
  std::string text;      // as Tokenizer::Piece
  bool special = false;  // control or unknown: only if asked for
};

TokenText TextOf(const sentencepiece::SentencePieceProcessor& processor,
                 int token) {
  const std::string& piece = processor.IdToPiece(token);
  if (processor.IsByte(token)) {  // "<0xAB>", as was checked
    const int byte = std::stoi(piece.substr(3, 2), nullptr, 16);
    return {.text = std::string(1, static_cast<char>(byte))};
  }
  if (processor.IsControl(token) || processor.IsUnknown(token)) {
    return {.text = piece, .special = true};
  }
  return {.text = absl::StrReplaceAll(piece, {{kWordBoundary, " "}})};
}

std::string ReplaceInvalidUtf8(const std::string& bytes) {
  std::string text;
  text.reserve(bytes.size());
  std::string_view rest = bytes;
  while (!rest.empty()) {
    const size_t length = Utf8CharLength(rest);
    if (length == 0) {
      text += kReplacement;
    } else {
      text += rest.substr(0, length);
    }
    rest.remove_prefix(length == 0 ? 1 : length);
  }
  return text;
}

class SentencePieceTokenizer : public Tokenizer {
 public:
  // REQUIRES: a loaded `processor`.
  SentencePieceTokenizer(
      std::unique_ptr<sentencepiece::SentencePieceProcessor> processor,
      const TokenizerFacts& facts)
      : processor_(std::move(processor)), facts_(facts) {
    texts_.reserve(facts.num_pieces);
    for (int token = 0; token < facts.num_pieces; ++token) {
      texts_.push_back(TextOf(*processor_, token));
    }
  }

  int vocab_size() const override { return static_cast<int>(texts_.size()); }
  TokenId bos() const override { return processor_->bos_id(); }
  TokenId eos() const override { return processor_->eos_id(); }

  absl::StatusOr<std::vector<TokenId>> Encode(std::string_view text,
                                              bool add_bos) const override {
    if (text.size() > kMaxTextBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("the text has ", text.size(),
                       " bytes, expected at most ", kMaxTextBytes));
    }
    if (!IsUtf8(text)) {
      return absl::InvalidArgumentError("the text is not valid UTF-8");
    }
    std::vector<TokenId> tokens;
    try {
      const auto status = processor_->Encode(text, &tokens);
      if (!status.ok()) {
        return absl::InternalError(
            absl::StrCat("cannot tokenize: ", status.error_message()));
      }
    } catch (const std::exception& error) {
      return absl::InternalError(
          absl::StrCat("cannot tokenize: ", error.what()));
    }
    if (add_bos && bos() != kNoToken) tokens.insert(tokens.begin(), bos());
    return tokens;
  }

  std::string Piece(TokenId token, bool keep_special) const override {
    const TokenText& text = TextOfToken(token);
    return text.special && !keep_special ? std::string() : text.text;
  }

  std::string Decode(const std::vector<TokenId>& tokens,
                     bool keep_special) const override {
    std::string bytes;
    bool first_word = facts_.adds_leading_space;
    for (const TokenId token : tokens) {
      const TokenText& text = TextOfToken(token);
      if (text.special) {
        if (keep_special) bytes += text.text;
        continue;
      }
      const bool drop = first_word && text.text.starts_with(' ') &&
                        !processor_->IsByte(token);
      bytes.append(text.text, drop ? 1 : 0);
      first_word = false;
    }
    return ReplaceInvalidUtf8(bytes);
  }

 private:
  const TokenText& TextOfToken(TokenId token) const {
    BINARYMOS_CHECK(token >= 0 && token < vocab_size()) << "token " << token;
    return texts_[token];
  }

  const std::unique_ptr<sentencepiece::SentencePieceProcessor> processor_;
  const TokenizerFacts facts_;
  std::vector<TokenText> texts_;  // by token
};

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(
    const std::string& model_dir) {
  const std::string path = model_dir + "/tokenizer.model";
  const absl::StatusOr<std::string> model =
      ReadRegularFile(path, kMaxModelBytes);
  if (!model.ok()) return model.status();
  const absl::StatusOr<TokenizerFacts> facts =
      CheckTokenizerModel(*model, path);
  if (!facts.ok()) return facts.status();
  auto processor = std::make_unique<sentencepiece::SentencePieceProcessor>();
  try {
    const auto status = processor->LoadFromSerializedProto(*model);
    if (!status.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": ", status.error_message()));
    }
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", error.what()));
  }
  if (processor->GetPieceSize() != facts->num_pieces) {
    return absl::InternalError(
        absl::StrCat(path, ": sentencepiece reads ", processor->GetPieceSize(),
                     " pieces, the check ", facts->num_pieces));
  }
  return std::make_unique<SentencePieceTokenizer>(std::move(processor), *facts);
}

}  // namespace binarymos
