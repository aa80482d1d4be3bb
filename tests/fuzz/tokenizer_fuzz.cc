// tokenizer.model: what passes our check is safe in sentencepiece's hands.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/core/check.h"
#include "engine/tokenizer.h"
#include "engine/tokenizer_check.h"
#include "tests/fuzz/fuzz_directory.h"

namespace binarymos {
namespace {

const FuzzDirectory& Directory() {
  static const FuzzDirectory* const directory = [] {
    atexit([] { Directory().~FuzzDirectory(); });
    return new FuzzDirectory;
  }();
  return *directory;
}

void Use(const Tokenizer& tokenizer) {
  constexpr std::string_view kText =
      "Once upon a time,  there was 1 king \xe2\x80\x94 \xf0\x9f\x91\x91 "
      "caf\xc3\xa9 \xef\xbc\xa1\n\tThe End.";
  auto tokens = tokenizer.Encode(kText, /*add_bos=*/true);
  if (!tokens.ok()) return;
  for (const TokenId token : *tokens) {
    BINARYMOS_CHECK(token >= 0 && token < tokenizer.vocab_size()) << token;
  }
  std::vector<TokenId> all;
  for (TokenId token = 0; token < tokenizer.vocab_size(); ++token) {
    tokenizer.Piece(token, /*keep_special=*/true);
    all.push_back(token);
  }
  tokenizer.Decode(*tokens, /*keep_special=*/false);
  tokenizer.Decode(all, /*keep_special=*/true);
}

}  // namespace
}  // namespace binarymos

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace binarymos;  // NOLINT
  const std::string_view model(reinterpret_cast<const char*>(data), size);
  if (!CheckTokenizerModel(model, "tokenizer.model").ok()) return 0;
  Directory().Write("tokenizer.model", data, size);
  auto tokenizer = Tokenizer::Load(Directory().path());
  if (tokenizer.ok()) Use(**tokenizer);
  return 0;
}
