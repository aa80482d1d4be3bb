// Where a fuzzer puts the file that the code under test reads.
#pragma once

#include <stdlib.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

#include "engine/core/check.h"

namespace binarymos {

// A directory of this process, below $TMPDIR; goes away at a normal exit.
class FuzzDirectory {
 public:
  FuzzDirectory()
      : path_(std::filesystem::temp_directory_path() / "fuzz-XXXXXX") {
    BINARYMOS_CHECK(mkdtemp(path_.data()) != nullptr) << path_;
  }
  FuzzDirectory(const FuzzDirectory&) = delete;
  FuzzDirectory& operator=(const FuzzDirectory&) = delete;
  ~FuzzDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  const std::string& path() const { return path_; }

  void Write(const std::string& name, const uint8_t* data, size_t size) const {
    std::ofstream file(path_ + "/" + name, std::ios::binary | std::ios::trunc);
    file.write(reinterpret_cast<const char*>(data),
               static_cast<std::streamsize>(size));
    BINARYMOS_CHECK(file.good()) << name;
  }
  void Remove(const std::string& name) const {
    std::filesystem::remove(path_ + "/" + name);
  }

 private:
  std::string path_;
};

}  // namespace binarymos
