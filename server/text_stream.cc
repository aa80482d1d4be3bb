#include "server/text_stream.h"

#include <algorithm>
#include <utility>

namespace binarymos {

TextStream::TextStream(const Tokenizer& tokenizer, TextStops stops)
    : tokenizer_(tokenizer), stops_(std::move(stops)) {}

std::string TextStream::NextPiece(TokenId token) {
  std::string piece = tokenizer_.Piece(token, /*keep_special=*/false);
  if (at_text_start_ && !piece.empty()) {
    at_text_start_ = false;
    // Only the tokenizer knows whether it put the space there.
    const bool space = piece[0] == ' ';
    if (space && tokenizer_.Decode({token}, false).size() < piece.size()) {
      piece.erase(0, 1);
    }
  }
  return piece;
}

void TextStream::Prompt(std::span<const TokenId> tokens, bool echo,
                        std::string& text) {
  for (const TokenId token : tokens) {
    const std::string piece = NextPiece(token);
    if (echo) characters_.Append(piece, text);
    // Without echo, only whether there is text before the output matters.
    if (!echo && !at_text_start_) return;
  }
}

bool TextStream::Append(TokenId token, std::string& text) {
  ++num_tokens_;
  const size_t num_old = held_.size();
  characters_.Append(NextPiece(token), held_);
  if (num_tokens_ > stops_.min_tokens && Match(num_old, text)) return true;
  const size_t num_certain = held_.size() - HeldBackBytes();
  text.append(held_, 0, num_certain);
  held_.erase(0, num_certain);
  return false;
}

// Looks for the first stop string that ends behind the first `num_old` bytes of
// held_.
bool TextStream::Match(size_t num_old, std::string& text) {
  size_t best_end = std::string::npos;
  for (size_t i = 0; i < stops_.strings.size(); ++i) {
    const std::string& stop = stops_.strings[i];
    const size_t from = num_old < stop.size() ? 0 : num_old - stop.size() + 1;
    const size_t begin = held_.find(stop, from);
    if (begin == std::string::npos) continue;
    const size_t end = begin + stop.size();
    if (end < best_end ||
        (end == best_end && stop.size() > stops_.strings[match_].size())) {
      best_end = end;
      match_ = i;
    }
  }
  if (best_end == std::string::npos) return false;
  const size_t hidden =
      stops_.include_string ? 0 : stops_.strings[match_].size();
  text.append(held_, 0, best_end - hidden);
  held_.clear();
  return true;
}

// Length of the longest tail of held_ that begins a stop string.
size_t TextStream::HeldBackBytes() const {
  size_t longest = 0;
  for (const std::string& stop : stops_.strings) {
    for (size_t n = std::min(held_.size(), stop.size() - 1); n > longest; --n) {
      if (std::string_view(held_).ends_with(
              std::string_view(stop).substr(0, n))) {
        longest = n;
        break;
      }
    }
  }
  return longest;
}

void TextStream::Finish(std::string& text) {
  characters_.Finish(held_);
  text.append(held_);
  held_.clear();
}

}  // namespace binarymos
