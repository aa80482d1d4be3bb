// SHA-256 of the files of a model directory, in its manifest.json:
//   {"version": 1, "files": {"config.json": {"bytes": 712, "sha256": "9f..."}}}
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace binarymos {

inline constexpr char kManifestName[] = "manifest.json";

// The manifest of the files that are in `model_dir` now. Names that begin with
// a dot and directories are left out, as is a manifest. Errors as
// RegularFile::Open.
absl::StatusOr<std::string> MakeManifest(const std::string& model_dir);

// Reads every file. OK if `model_dir` has a manifest and exactly the files that
// it names, each with the contents it says. NOT_FOUND without a manifest;
// INVALID_ARGUMENT for one that is not well-formed; DATA_LOSS naming the first
// file that is missing, unexpected, of another size or of another content.
absl::Status VerifyManifest(const std::string& model_dir);

}  // namespace binarymos
