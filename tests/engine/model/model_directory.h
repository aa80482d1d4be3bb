// Builds model directories tensor by tensor, sound ones and others.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/engine/model/temp_dir.h"

namespace binarymos {

struct TestTensor {
  std::string name;
  std::string dtype;  // "U8", "F16", "BF16", "F32" or "I32"
  std::vector<int64_t> shape;

  size_t bytes() const;
};

// A safetensors file with this header and these data.
std::string SafetensorsFile(const std::string& header, const std::string& data);

// The header of `tensors`, one after the other.
nlohmann::json HeaderOf(const std::vector<TestTensor>& tensors);

// As text, with spaces up to a multiple of 8 bytes.
std::string PaddedHeader(const nlohmann::json& header);

// Byte i of the data is i modulo 251.
std::string DataOf(const std::vector<TestTensor>& tensors);

// A sound file.
std::string Serialize(const std::vector<TestTensor>& tensors);

// A BinaryMoS model of one layer, 2 heads of 8, one of them for keys and
// values, 2 experts, vocabulary 10. To be changed before it is written.
struct ModelDirectory {
  ModelDirectory();

  // Replaces each linear's tensors by one `.weight`.
  void MakeFloat16();

  // REQUIRES: there is such a tensor.
  TestTensor& tensor(const std::string& name);
  void Remove(const std::string& name);

  void WriteTo(const TempDir& dir) const;

  nlohmann::json config;
  std::vector<TestTensor> tensors;  // sizes are even: any order is aligned
};

}  // namespace binarymos
