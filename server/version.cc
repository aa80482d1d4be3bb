#include "server/version.h"

// Both come from CMakeLists.txt.
#ifndef BINARYMOS_VERSION
#error "BINARYMOS_VERSION is not defined"
#endif
#ifndef BINARYMOS_GIT_COMMIT
#define BINARYMOS_GIT_COMMIT "unknown"
#endif

namespace binarymos {

const char* Version() { return BINARYMOS_VERSION; }

const char* GitCommit() { return BINARYMOS_GIT_COMMIT; }

const char* Compiler() {
#if defined(__clang__)
  return "Clang " __clang_version__;
#else
  return "GCC " __VERSION__;
#endif
}

std::string VersionLine() {
  return std::string("binarymos ") + Version() + " (commit " + GitCommit() +
         ", " + Compiler() + ")";
}

}  // namespace binarymos
