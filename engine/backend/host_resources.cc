#include "engine/backend/host_resources.h"

#include <sched.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <optional>
#include <sstream>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace binarymos {
namespace {

using Lines = std::vector<std::string>;

// Empty if the file cannot be read.
Lines ReadLines(const std::string& path) {
  std::ifstream file(path);
  Lines lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

// The first line of a file as a number; none if there is no file or it holds a
// word ("max").
std::optional<int64_t> ReadNumber(const std::string& path) {
  const Lines lines = ReadLines(path);
  int64_t number = 0;
  if (lines.empty() || !absl::SimpleAtoi(lines[0], &number)) {
    return std::nullopt;
  }
  return number;
}

// The number after `key` in a file of lines "key number" or "key: number kB".
std::optional<int64_t> FindNumber(const Lines& lines, absl::string_view key) {
  for (const std::string& line : lines) {
    const std::vector<std::string> words =
        absl::StrSplit(line, absl::ByAnyChar(" :\t"), absl::SkipEmpty());
    int64_t number = 0;
    if (words.size() >= 2 && words[0] == key &&
        absl::SimpleAtoi(words[1], &number)) {
      return number;
    }
  }
  return std::nullopt;
}

struct Cgroups {
  bool v2 = false;
  std::vector<std::string> directories;  // the process's own and all above it
};

// `base` and the directories on the way down to base + path. In a container the
// path may be the host's and not exist here; `base` is then the container's.
std::vector<std::string> Ancestors(const std::string& base,
                                   absl::string_view path) {
  std::vector<std::string> directories = {base};
  if (absl::StrContains(path, "..")) return directories;
  std::string directory = base;
  for (const absl::string_view name :
       absl::StrSplit(path, '/', absl::SkipEmpty())) {
    absl::StrAppend(&directory, "/", name);
    directories.push_back(directory);
  }
  return directories;
}

// The groups that limit the process: those of v1's `controller`, and of v2.
std::vector<Cgroups> FindCgroups(const std::string& root,
                                 absl::string_view controller) {
  std::vector<Cgroups> found;
  for (const std::string& line : ReadLines(root + "/proc/self/cgroup")) {
    // number:controller,controller:path
    const std::vector<std::string> parts =
        absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3) continue;
    const std::string base = root + "/sys/fs/cgroup";
    if (parts[1].empty()) {
      found.push_back({true, Ancestors(base, parts[2])});
      continue;
    }
    const std::vector<std::string> names = absl::StrSplit(parts[1], ',');
    if (std::find(names.begin(), names.end(), controller) != names.end()) {
      found.push_back(
          {false, Ancestors(absl::StrCat(base, "/", controller), parts[2])});
    }
  }
  return found;
}

// What one group leaves; none if it sets no limit.
std::optional<int64_t> MemoryLeft(const std::string& directory, bool v2) {
  const auto limit =
      ReadNumber(directory + (v2 ? "/memory.max" : "/memory.limit_in_bytes"));
  const auto usage = ReadNumber(
      directory + (v2 ? "/memory.current" : "/memory.usage_in_bytes"));
  if (!limit || !usage) return std::nullopt;
  const Lines stat = ReadLines(directory + "/memory.stat");
  const std::string prefix = v2 ? "" : "total_";
  const int64_t files = FindNumber(stat, prefix + "inactive_file").value_or(0) +
                        FindNumber(stat, prefix + "active_file").value_or(0);
  const int64_t used = std::max<int64_t>(0, *usage - files);
  return std::max<int64_t>(0, *limit - used);
}

// CPUs that one group's quota allows; none if it sets no quota.
std::optional<double> CpuQuota(const std::string& directory, bool v2) {
  std::optional<int64_t> quota, period;
  if (v2) {
    const Lines lines = ReadLines(directory + "/cpu.max");  // "quota period"
    if (lines.empty()) return std::nullopt;
    const std::vector<std::string> words =
        absl::StrSplit(lines[0], ' ', absl::SkipEmpty());
    int64_t values[2];
    if (words.size() != 2 || !absl::SimpleAtoi(words[0], &values[0]) ||
        !absl::SimpleAtoi(words[1], &values[1])) {
      return std::nullopt;  // "max 100000"
    }
    quota = values[0];
    period = values[1];
  } else {
    quota = ReadNumber(directory + "/cpu.cfs_quota_us");  // -1: none
    period = ReadNumber(directory + "/cpu.cfs_period_us");
  }
  if (!quota || !period || *quota <= 0 || *period <= 0) return std::nullopt;
  return static_cast<double>(*quota) / static_cast<double>(*period);
}

int AllowedCpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
  // More CPUs than the fixed set holds.
  return static_cast<int>(std::thread::hardware_concurrency());
}

}  // namespace

absl::StatusOr<size_t> AvailableHostMemory(const std::string& root) {
  const std::string meminfo = root + "/proc/meminfo";
  const auto kib = FindNumber(ReadLines(meminfo), "MemAvailable");
  if (!kib) {
    return absl::UnavailableError(
        absl::StrCat("cannot read MemAvailable from ", meminfo));
  }
  int64_t available = *kib * 1024;
  for (const Cgroups& groups : FindCgroups(root, "memory")) {
    for (const std::string& directory : groups.directories) {
      const auto left = MemoryLeft(directory, groups.v2);
      if (left) available = std::min(available, *left);
    }
  }
  return static_cast<size_t>(available);
}

int UsableCpus(const std::string& root) {
  int cpus = AllowedCpus();
  for (const Cgroups& groups : FindCgroups(root, "cpu")) {
    for (const std::string& directory : groups.directories) {
      const auto quota = CpuQuota(directory, groups.v2);
      if (quota && *quota < cpus) cpus = static_cast<int>(*quota);
    }
  }
  return std::max(cpus, 1);
}

}  // namespace binarymos
