#include "cli/command.h"

#include <cstdio>

namespace binarymos {

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "binarymos: %s\n", status.ToString().c_str());
  return kExitFailure;
}

int FailUsage(const std::string& message) {
  std::fprintf(stderr, "binarymos: %s (see --help)\n", message.c_str());
  return kExitUsage;
}

}  // namespace binarymos
