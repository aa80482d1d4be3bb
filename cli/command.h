// What every subcommand of `binarymos` shares.
#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"

namespace CLI {
class App;
}  // namespace CLI

namespace binarymos {

// Exit codes, the same for every subcommand.
inline constexpr int kExitOk = 0;
inline constexpr int kExitFailure = 1;  // it was tried and did not work
inline constexpr int kExitUsage = 2;    // flags, variables or file are wrong

// A subcommand that has declared its flags. `run` is called once, after
// parsing, if the subcommand was chosen, and returns the exit code.
struct Command {
  CLI::App* app = nullptr;  // owned by the application
  std::function<int()> run;
};

Command AddServeCommand(CLI::App& app);
Command AddGenerateCommand(CLI::App& app);
Command AddHealthCommand(CLI::App& app);
Command AddBenchCommand(CLI::App& app);
Command AddConvertCommand(CLI::App& app);
Command AddPerplexityCommand(CLI::App& app);
Command AddInspectCommand(CLI::App& app);
Command AddSynthesizeCommand(CLI::App& app);
Command AddVersionCommand(CLI::App& app);

// Print `binarymos: ...` to standard error and return the exit code.
int Fail(const absl::Status& status);       // "NOT_FOUND: ..."
int FailUsage(const std::string& message);  // with a hint to --help

}  // namespace binarymos
