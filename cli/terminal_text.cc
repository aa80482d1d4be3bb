#include "cli/terminal_text.h"

namespace binarymos {

std::string ForTerminal(std::string_view text) {
  constexpr char kReplacement[] = "\xEF\xBF\xBD";
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const bool is_c0 =
        (byte < 0x20 && text[i] != '\n' && text[i] != '\t') || byte == 0x7F;
    // U+0080 to U+009F are control characters too.
    const bool is_c1 = byte == 0xC2 && i + 1 < text.size() &&
                       static_cast<unsigned char>(text[i + 1]) < 0xA0;
    if (is_c0 || is_c1) {
      out += kReplacement;
      if (is_c1) ++i;
    } else {
      out += text[i];
    }
  }
  return out;
}

}  // namespace binarymos
