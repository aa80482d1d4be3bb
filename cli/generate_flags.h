// The request that the flags of `binarymos generate` describe.
#pragma once

#include "binarymos/v1/inference.pb.h"

namespace CLI {
class App;
}  // namespace CLI

namespace binarymos {

// Declares a flag for every field of `request` but the prompt. A field whose
// flag is absent stays absent, so that the server's default holds. `request`
// outlives the parsing.
void AddRequestFlags(CLI::App& app, v1::GenerateRequest& request);

}  // namespace binarymos
