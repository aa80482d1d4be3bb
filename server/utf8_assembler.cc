#include "server/utf8_assembler.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace binarymos {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// What stands at the beginning of some bytes.
enum class Scan { kCharacter, kIncomplete, kInvalid };

// Lowest and highest second byte of a character that begins with `lead`
// (no overlong forms, no surrogates, nothing above U+10FFFF).
void SecondByteRange(uint8_t lead, uint8_t& low, uint8_t& high) {
  low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
}

// Bytes of the character that begins with `lead`; 0 if none does.
size_t CharacterLength(uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return 2;
  if (lead >= 0xE0 && lead <= 0xEF) return 3;
  if (lead >= 0xF0 && lead <= 0xF4) return 4;
  return 0;
}

Scan ScanCharacter(std::string_view bytes, size_t& length) {
  const auto lead = static_cast<uint8_t>(bytes[0]);
  length = CharacterLength(lead);
  if (length == 0) return Scan::kInvalid;
  for (size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) return Scan::kIncomplete;
    uint8_t low = 0x80;
    uint8_t high = 0xBF;
    if (i == 1) SecondByteRange(lead, low, high);
    const auto byte = static_cast<uint8_t>(bytes[i]);
    if (byte < low || byte > high) return Scan::kInvalid;
  }
  return Scan::kCharacter;
}

}  // namespace

void Utf8Assembler::Append(std::string_view bytes, std::string& text) {
  const auto is_ascii = [](char c) { return static_cast<uint8_t>(c) < 0x80; };
  if (pending_.empty() && std::all_of(bytes.begin(), bytes.end(), is_ascii)) {
    text.append(bytes);
    return;
  }
  pending_.append(bytes);
  std::string_view rest = pending_;
  while (!rest.empty()) {
    size_t length = 0;
    const Scan scan = ScanCharacter(rest, length);
    if (scan == Scan::kIncomplete) break;
    if (scan == Scan::kInvalid) {
      text.append(kReplacement);
      rest.remove_prefix(1);
    } else {
      text.append(rest.substr(0, length));
      rest.remove_prefix(length);
    }
  }
  pending_.erase(0, pending_.size() - rest.size());
}

void Utf8Assembler::Finish(std::string& text) {
  for (size_t i = 0; i < pending_.size(); ++i) text.append(kReplacement);
  pending_.clear();
}

}  // namespace binarymos
