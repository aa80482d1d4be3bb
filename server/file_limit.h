// The limit on open files: every connection is one.
#pragma once

namespace binarymos {

// Raises this process's limit as far as it may and returns it. Below 4,096 a
// warning says so.
long RaiseFileLimit();

}  // namespace binarymos
