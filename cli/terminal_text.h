// Text from a model on its way to a terminal.
#pragma once

#include <string>
#include <string_view>

namespace binarymos {

// Control characters, which could move the cursor or change the title, become
// U+FFFD; newlines and tabs stay. `text` is UTF-8.
std::string ForTerminal(std::string_view text);

}  // namespace binarymos
