// binarymos inspect: what is in a model directory.
#include "engine/inspect.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>

#include "cli/command.h"

namespace binarymos {
namespace {

struct InspectOptions {
  std::string model_dir;
  bool json = false;
  bool summary = false;
};

int Run(const InspectOptions& options) {
  const absl::StatusOr<ModelInspection> inspection =
      InspectModel(options.model_dir);
  if (!inspection.ok()) return Fail(inspection.status());
  const std::string text = options.json ? ToJson(*inspection, !options.summary)
                                        : ToText(*inspection, !options.summary);
  std::fputs(text.c_str(), stdout);
  return kExitOk;
}

}  // namespace

Command AddInspectCommand(CLI::App& app) {
  CLI::App* inspect = app.add_subcommand(
      "inspect", "Show tensors, bits per weight and memory of a model");
  auto options = std::make_shared<InspectOptions>();
  inspect->add_option("model", options->model_dir, "Model directory")
      ->required();
  inspect->add_flag("--json", options->json, "Print one JSON object");
  inspect->add_flag("--summary", options->summary,
                    "Leave out the list of tensors");
  inspect->footer("Exit codes: 0 ok, 1 not a model that can be read, 2 usage.");
  return {inspect, [options] { return Run(*options); }};
}

}  // namespace binarymos
