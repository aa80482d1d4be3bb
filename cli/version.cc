// binarymos version: the build and the machine it runs on.
#include "server/version.h"

#include <grpcpp/grpcpp.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

#include "cli/command.h"

namespace binarymos {
namespace {

// Instruction sets that the kernels can make use of.
std::string CpuFeatures() {
  std::string features;
#if defined(__x86_64__)
  const auto add = [&features](bool has, const char* name) {
    if (has) features += std::string(features.empty() ? "" : " ") + name;
  };
  __builtin_cpu_init();
  add(__builtin_cpu_supports("sse4.2"), "sse4.2");
  add(__builtin_cpu_supports("avx2"), "avx2");
  add(__builtin_cpu_supports("fma"), "fma");
  add(__builtin_cpu_supports("bmi2"), "bmi2");
  add(__builtin_cpu_supports("avx512f"), "avx512f");
  add(__builtin_cpu_supports("avx512bw"), "avx512bw");
  add(__builtin_cpu_supports("avx512vbmi"), "avx512vbmi");
  add(__builtin_cpu_supports("avx512vnni"), "avx512vnni");
#endif
  return features.empty() ? "none known" : features;
}

int Run() {
  std::printf(
      "binarymos %s\ncommit    %s\ncompiler  %s\ngRPC      %s\ncpu       %s\n",
      Version(), GitCommit(), Compiler(), grpc::Version().c_str(),
      CpuFeatures().c_str());
  return kExitOk;
}

}  // namespace

Command AddVersionCommand(CLI::App& app) {
  CLI::App* version =
      app.add_subcommand("version", "Show version, commit, compiler and CPU");
  return {version, [] { return Run(); }};
}

}  // namespace binarymos
