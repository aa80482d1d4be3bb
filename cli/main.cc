// The command `binarymos`.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/nearest.h"

namespace binarymos {
namespace {

// "--no-such=1" is the flag "--no-such".
std::string FlagOf(const std::string& argument) {
  return argument.substr(0, argument.find('='));
}

std::vector<std::string> FlagsOf(const CLI::App& app) {
  std::vector<std::string> flags;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) {
      flags.push_back("--" + name);
    }
  }
  return flags;
}

// Unknown arguments are kept, to be answered with the nearest known one.
void KeepExtras(CLI::App& app) {
  app.allow_extras();
  for (CLI::App* sub : app.get_subcommands(nullptr)) KeepExtras(*sub);
}

// Empty, or what is wrong with the first argument that nobody understood.
std::string ExtrasError(CLI::App& app) {
  for (CLI::App* sub : app.get_subcommands()) {
    const std::string error = ExtrasError(*sub);
    if (!error.empty()) return error;
  }
  const std::vector<std::string> extras = app.remaining();
  if (extras.empty()) return "";
  const std::string argument = FlagOf(extras.front());
  return "unknown argument '" + argument + "' of " + app.get_name() +
         DidYouMean(argument, FlagsOf(app));
}

int Dispatch(int argc, char** argv) {
  CLI::App app("Serves 1-bit LLaMA models (BinaryMoS) over gRPC.", "binarymos");
  app.require_subcommand(1);
  app.footer(
      "Exit codes: 0 success, 1 failure, 2 usage.\n"
      "binarymos <subcommand> --help tells more.");
  const std::vector<Command> commands = {
      AddServeCommand(app),      AddGenerateCommand(app),
      AddHealthCommand(app),     AddConvertCommand(app),
      AddPerplexityCommand(app), AddInspectCommand(app),
      AddSynthesizeCommand(app), AddBenchCommand(app),
      AddVersionCommand(app)};
  std::vector<std::string> names;
  for (const Command& command : commands) {
    KeepExtras(*command.app);
    names.push_back(command.app->get_name());
  }

  const std::string first = argc > 1 ? argv[1] : "";
  if (first == "--version") return commands.back().run();
  if (!first.empty() && first[0] != '-' &&
      std::find(names.begin(), names.end(), first) == names.end()) {
    return FailUsage("unknown subcommand '" + first + "'" +
                     DidYouMean(first, names));
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    return FailUsage(error.what());
  }
  for (const Command& command : commands) {
    if (!command.app->parsed()) continue;
    const std::string error = ExtrasError(*command.app);
    if (!error.empty()) return FailUsage(error);
    return command.run();
  }
  return kExitUsage;  // require_subcommand has thrown
}

}  // namespace
}  // namespace binarymos

int main(int argc, char** argv) {
  try {
    return binarymos::Dispatch(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "binarymos: %s\n", error.what());
    return binarymos::kExitFailure;
  }
}
