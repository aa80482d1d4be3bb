// The options of `binarymos serve`.
#pragma once

#include <string>

#include "cli/option_table.h"
#include "server/config.h"

namespace binarymos {

struct ServeOptions {
  ServerConfig config;
  std::string port_file;  // empty: none
};

// Declares every option of `options`, which outlives `table`.
void AddServeOptions(ServeOptions& options, OptionTable& table);

}  // namespace binarymos
