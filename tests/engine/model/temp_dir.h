// Files for one test.
#pragma once

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "engine/core/check.h"
#include "gtest/gtest.h"

namespace binarymos {

// A new directory that goes away with this object.
class TempDir {
 public:
  TempDir() : path_(::testing::TempDir() + "/binarymos-XXXXXX") {
    BINARYMOS_CHECK(mkdtemp(path_.data()) != nullptr) << path_;
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const {
    return path_ + "/" + name;
  }

  void Write(const std::string& name, std::string_view content) const {
    std::ofstream file(*this / name, std::ios::binary | std::ios::trunc);
    file.write(content.data(), static_cast<std::streamsize>(content.size()));
    BINARYMOS_CHECK(file.good()) << name;
  }

 private:
  std::string path_;
};

}  // namespace binarymos
