// What somebody may have meant by a name that does not exist.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace binarymos {

// Insertions, deletions, replacements and swaps of neighbours that turn `a`
// into `b`; no character takes part in two of them.
int EditDistance(std::string_view a, std::string_view b);

// The candidate that is nearest to `name`, the first of equals; empty if none
// is near enough to be a slip.
std::string NearestMatch(std::string_view name,
                         const std::vector<std::string>& candidates);

// "; did you mean 'serve'?", or nothing.
std::string DidYouMean(std::string_view name,
                       const std::vector<std::string>& candidates);

}  // namespace binarymos
