#include "bench/workload.h"

#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/version.h"

namespace binarymos {
namespace {

double Seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + 1e-6 * time.tv_usec;
}

std::string CpuName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name")) {
      return std::string(
          absl::StripPrefix(line.substr(line.find(':') + 1), " "));
    }
  }
  return "unknown CPU";
}

}  // namespace

std::vector<TokenId> PromptTokens(const Workload& workload, int stream,
                                  int vocab_size) {
  constexpr TokenId kFirstOrdinary = 3;  // after <unk>, <s>, </s>
  std::vector<TokenId> tokens(workload.prompt_tokens);
  // Number 0 is the prefix in common, and the first stream's own tokens.
  const auto state_of = [seed = uint64_t{workload.seed} << 32](int number) {
    return 0x9e3779b97f4a7c15ull * (seed + static_cast<uint64_t>(number) + 1);
  };
  uint64_t state = state_of(0);
  for (int i = 0; i < workload.prompt_tokens; ++i) {
    if (i == workload.common_tokens) state = state_of(stream);
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    tokens[i] =
        kFirstOrdinary +
        static_cast<TokenId>(
            (state >> 33) % static_cast<uint64_t>(vocab_size - kFirstOrdinary));
  }
  return tokens;
}

double ProcessCpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return Seconds(usage.ru_utime) + Seconds(usage.ru_stime);
}

double Quantile(std::vector<double> values, double quantile) {
  if (values.empty()) return 0;
  const auto index = static_cast<size_t>(
      std::lround(quantile * static_cast<double>(values.size() - 1)));
  std::nth_element(values.begin(), values.begin() + index, values.end());
  return values[index];
}

std::string MachineDescription() {
  return absl::StrCat(CpuName(), ", ", std::thread::hardware_concurrency(),
                      " hardware threads, commit ", GitCommit());
}

}  // namespace binarymos
