// Opening and reading files that somebody else wrote.
#pragma once

#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace binarymos {

// An open file descriptor of a regular file. Move-only.
class RegularFile {
 public:
  // Opens for reading without ever blocking. NOT_FOUND if there is no such
  // file; INVALID_ARGUMENT for a directory, FIFO, socket or device;
  // PERMISSION_DENIED or INTERNAL for other failures. Messages name the path.
  static absl::StatusOr<RegularFile> Open(const std::string& path);

  RegularFile(RegularFile&& other) noexcept;
  RegularFile& operator=(RegularFile&& other) noexcept;
  ~RegularFile();

  int fd() const { return fd_; }
  size_t size() const { return size_; }  // when it was opened

 private:
  RegularFile(int fd, size_t size) : fd_(fd), size_(size) {}

  int fd_ = -1;
  size_t size_ = 0;
};

// The whole file. Errors as RegularFile::Open, and INVALID_ARGUMENT for a file
// of more than `max_bytes`.
absl::StatusOr<std::string> ReadRegularFile(const std::string& path,
                                            size_t max_bytes);

// A status for the value of `errno` after `action` ("open", "map") on `path`.
absl::Status ErrnoStatus(int error, const char* action,
                         const std::string& path);

}  // namespace binarymos
