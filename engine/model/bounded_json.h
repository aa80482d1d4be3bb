// JSON that somebody else wrote.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace binarymos {

struct JsonLimits {
  int max_depth = 32;
  size_t max_values = 1 << 20;  // keys count too
};

// Parses one JSON document whose root is an object. INVALID_ARGUMENT naming
// `file` (and the place) for text that is not JSON or not UTF-8, a key that
// stands twice in one object, or a limit that is exceeded.
absl::StatusOr<nlohmann::json> ParseBoundedJson(std::string_view text,
                                                const std::string& file,
                                                const JsonLimits& limits = {});

}  // namespace binarymos
