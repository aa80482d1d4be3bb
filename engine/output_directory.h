// Writing a directory that appears whole or not at all.
#pragma once

#include <cstddef>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace binarymos {

// A new file. Move-only; not usable after an error.
class OutputFile {
 public:
  // ALREADY_EXISTS if there is one at `path`; RESOURCE_EXHAUSTED if the disk is
  // full, NOT_FOUND, PERMISSION_DENIED or INTERNAL for other failures here and
  // below. `durable`: Close waits until the disk has the data.
  static absl::StatusOr<OutputFile> Create(std::string path, bool durable);

  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&&) = delete;
  ~OutputFile();

  absl::Status Write(const void* data, size_t bytes);
  // REQUIRES: not closed yet.
  absl::Status Close();

 private:
  OutputFile(int fd, std::string path, bool durable)
      : fd_(fd), path_(std::move(path)), durable_(durable) {}

  int fd_;
  std::string path_;
  bool durable_;
};

struct OutputDirectoryOptions {
  // The target may be a model directory (one with a config.json), which is
  // removed once the new one stands in its place.
  bool replace = false;
  // Every file reaches the disk before the directory gets its name.
  bool durable = false;
};

// A directory beside its target, with a name that says so ("x.tmp-123-0"). It
// becomes the target on Commit and is removed if it goes away without.
// Move-only; used on one thread.
class OutputDirectory {
 public:
  // ALREADY_EXISTS if something other than an empty directory stands at
  // `target` and may not be replaced; NOT_FOUND if its parent does not exist.
  static absl::StatusOr<OutputDirectory> Create(
      std::string target, const OutputDirectoryOptions& options);

  OutputDirectory(OutputDirectory&& other) noexcept;
  OutputDirectory& operator=(OutputDirectory&&) = delete;
  ~OutputDirectory();

  const std::string& path() const { return path_; }  // for now

  // `name` is a plain file name.
  absl::StatusOr<OutputFile> CreateFile(const std::string& name) const;
  absl::Status WriteFile(const std::string& name,
                         const std::string& content) const;

  // Gives the directory its name. ALREADY_EXISTS if somebody else took it
  // meanwhile.
  absl::Status Commit();

 private:
  OutputDirectory(std::string target, std::string path,
                  const OutputDirectoryOptions& options)
      : target_(std::move(target)), path_(std::move(path)), options_(options) {}

  absl::Status Replace();

  std::string target_;
  std::string path_;  // empty once committed
  OutputDirectoryOptions options_;
};

}  // namespace binarymos
