// binarymos synthesize: a model with random weights.
#include "engine/synthesize.h"

#include <CLI/CLI.hpp>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "cli/command.h"

namespace binarymos {
namespace {

struct SynthesizeOptions {
  std::string model_dir;
  std::string shape = "tiny";
  std::string quant_method = "binarymos";
  int num_layers = 0;  // 0: the shape's
  uint64_t seed = 0;
};

int Run(const SynthesizeOptions& options) {
  absl::StatusOr<SyntheticShape> shape = SyntheticShapeByName(options.shape);
  if (!shape.ok()) return FailUsage(std::string(shape.status().message()));
  shape->quant_method = options.quant_method;
  if (options.num_layers != 0) shape->num_layers = options.num_layers;
  const absl::Status status =
      SynthesizeModel(options.model_dir, *shape, options.seed);
  if (!status.ok()) return Fail(status);
  std::printf("%s: random weights, shape %s, seed %llu\n",
              options.model_dir.c_str(), options.shape.c_str(),
              static_cast<unsigned long long>(options.seed));
  return kExitOk;
}

}  // namespace

Command AddSynthesizeCommand(CLI::App& app) {
  CLI::App* synthesize = app.add_subcommand(
      "synthesize", "Write a model with random weights, to try things out");
  auto options = std::make_shared<SynthesizeOptions>();
  synthesize
      ->add_option("model", options->model_dir,
                   "Directory to write; must not exist")
      ->required();
  synthesize->add_option("--shape", options->shape, "tiny, 1b, 7b or 13b")
      ->capture_default_str();
  synthesize
      ->add_option("--quant-method", options->quant_method,
                   "binarymos, float16, or binarymos-training: a source for "
                   "convert")
      ->capture_default_str();
  synthesize
      ->add_option("--layers", options->num_layers,
                   "Decoder blocks; 0: as the shape has")
      ->capture_default_str();
  synthesize->add_option("--seed", options->seed, "Same seed, same bytes")
      ->capture_default_str();
  synthesize->footer("Exit codes: 0 ok, 1 not written, 2 usage.");
  return {synthesize, [options] { return Run(*options); }};
}

}  // namespace binarymos
