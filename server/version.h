// What was built, when asked.
#pragma once

#include <string>

namespace binarymos {

const char* Version();    // "0.1.0"
const char* GitCommit();  // abbreviated; "unknown" outside a git checkout
const char* Compiler();   // "GCC 12.2.0"

// All of it in a line: "binarymos 0.1.0 (commit, compiler)".
std::string VersionLine();

}  // namespace binarymos
