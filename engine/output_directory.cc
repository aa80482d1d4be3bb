#include "engine/output_directory.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/core/check.h"
#include "engine/model/regular_file.h"

namespace binarymos {
namespace {

absl::Status SyncDirectory(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(errno, "open", path);
  const int error = fsync(fd) == 0 ? 0 : errno;
  close(fd);
  return error == 0 ? absl::OkStatus() : ErrnoStatus(error, "write", path);
}

std::string ParentOf(const std::string& path) {
  const std::string parent = std::filesystem::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

absl::Status CheckTarget(const std::string& target, bool replace) {
  std::error_code error;
  const auto kind = std::filesystem::symlink_status(target, error).type();
  if (kind == std::filesystem::file_type::not_found) return absl::OkStatus();
  if (kind == std::filesystem::file_type::directory) {
    if (std::filesystem::is_empty(target, error)) return absl::OkStatus();
    if (replace && std::filesystem::exists(target + "/config.json", error)) {
      return absl::OkStatus();
    }
  }
  return absl::AlreadyExistsError(absl::StrCat(
      target, " exists already, expected a new name or an empty directory",
      replace ? "; only a model directory, one with a config.json, is replaced"
              : ""));
}

}  // namespace

absl::StatusOr<OutputFile> OutputFile::Create(std::string path, bool durable) {
  const int fd =
      open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd >= 0) return OutputFile(fd, std::move(path), durable);
  if (errno == EEXIST) return absl::AlreadyExistsError(path + " exists");
  return ErrnoStatus(errno, "create", path);
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      path_(std::move(other.path_)),
      durable_(other.durable_) {}

OutputFile::~OutputFile() {
  if (fd_ >= 0) close(fd_);
}

absl::Status OutputFile::Write(const void* data, size_t bytes) {
  const auto* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = write(fd_, next, bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "write", path_);
    next += n;
    bytes -= static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::Status OutputFile::Close() {
  BINARYMOS_CHECK(fd_ >= 0);
  if (durable_ && fsync(fd_) != 0) return ErrnoStatus(errno, "write", path_);
  if (close(std::exchange(fd_, -1)) == 0) return absl::OkStatus();
  return ErrnoStatus(errno, "close", path_);
}

absl::StatusOr<OutputDirectory> OutputDirectory::Create(
    std::string target, const OutputDirectoryOptions& options) {
  while (target.size() > 1 && target.ends_with('/')) target.pop_back();
  const absl::Status status = CheckTarget(target, options.replace);
  if (!status.ok()) return status;
  for (int attempt = 0;; ++attempt) {
    const std::string path =
        absl::StrCat(target, ".tmp-", getpid(), "-", attempt);
    if (mkdir(path.c_str(), 0777) == 0) {
      return OutputDirectory(std::move(target), path, options);
    }
    if (errno != EEXIST || attempt == 1000) {
      return ErrnoStatus(errno, "create", path);
    }
  }
}

OutputDirectory::OutputDirectory(OutputDirectory&& other) noexcept
    : target_(std::move(other.target_)),
      path_(std::exchange(other.path_, {})),
      options_(other.options_) {}

OutputDirectory::~OutputDirectory() {
  std::error_code ignored;
  if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
}

absl::StatusOr<OutputFile> OutputDirectory::CreateFile(
    const std::string& name) const {
  return OutputFile::Create(absl::StrCat(path_, "/", name), options_.durable);
}

absl::Status OutputDirectory::WriteFile(const std::string& name,
                                        const std::string& content) const {
  absl::StatusOr<OutputFile> file = CreateFile(name);
  if (!file.ok()) return file.status();
  const absl::Status status = file->Write(content.data(), content.size());
  return status.ok() ? file->Close() : status;
}

absl::Status OutputDirectory::Commit() {
  if (options_.durable) {
    if (auto status = SyncDirectory(path_); !status.ok()) return status;
  }
  // Replaces nothing, or an empty directory.
  if (rename(path_.c_str(), target_.c_str()) == 0) {
    path_.clear();
  } else if (errno != ENOTEMPTY && errno != EEXIST && errno != ENOTDIR) {
    return ErrnoStatus(errno, "create", target_);
  } else if (!options_.replace) {
    return absl::AlreadyExistsError(target_ + " exists already");
  } else if (auto status = Replace(); !status.ok()) {
    return status;
  }
  return options_.durable ? SyncDirectory(ParentOf(target_)) : absl::OkStatus();
}

// What stood at the target takes the temporary name and is removed with it.
absl::Status OutputDirectory::Replace() {
  if (auto status = CheckTarget(target_, true); !status.ok()) return status;
  if (renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, target_.c_str(),
                RENAME_EXCHANGE) == 0) {
    return absl::OkStatus();
  }
  if (errno != EINVAL && errno != ENOSYS) {
    return ErrnoStatus(errno, "replace", target_);
  }
  // A file system that cannot exchange: for a moment there is no target.
  const std::string old = path_ + "-old";
  if (rename(target_.c_str(), old.c_str()) != 0) {
    return ErrnoStatus(errno, "replace", target_);
  }
  if (rename(path_.c_str(), target_.c_str()) != 0) {
    const int error = errno;
    (void)rename(old.c_str(), target_.c_str());
    return ErrnoStatus(error, "replace", target_);
  }
  path_ = old;
  return absl::OkStatus();
}

}  // namespace binarymos
