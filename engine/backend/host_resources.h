// What the machine and the process's control groups (v1 and v2) leave to it.
#pragma once

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"

namespace binarymos {

// Bytes that the process can still touch: MemAvailable, or less if a control
// group above the process has less left under its limit. File pages count as
// free: the kernel drops them first. `root` stands before every path that is
// read (tests). UNAVAILABLE if /proc/meminfo cannot be read.
absl::StatusOr<size_t> AvailableHostMemory(const std::string& root = "");

// CPUs that the affinity mask allows, or fewer if a control group's quota is
// smaller (rounded down, so that a full team is not throttled). At least 1.
int UsableCpus(const std::string& root = "");

}  // namespace binarymos
