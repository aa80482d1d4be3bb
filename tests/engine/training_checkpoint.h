// Training checkpoints, small ones, in the published layout and as plain float
// models.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/engine/model/temp_dir.h"

namespace binarymos {

struct FloatTensor {
  std::string name;
  std::string dtype;  // "F16", "BF16" or "F32"
  std::vector<int64_t> shape;
  std::vector<float> values;
};

// A directory to be changed before it is written.
struct TrainingCheckpoint {
  nlohmann::json config;
  std::vector<FloatTensor> tensors;

  // REQUIRES: there is such a tensor.
  FloatTensor& tensor(const std::string& name);
  void SetDType(const std::string& dtype);  // of every tensor

  // model.safetensors; or, with more than one, shards and their index.
  void WriteTo(const TempDir& dir, int num_shards = 1) const;
};

// Two layers of 24 inputs, 4 heads and 2 for keys and values, an intermediate
// size of 40, a vocabulary of 16; random values that F16 and BF16 hold exactly,
// none of them zero. `num_expert` 0: a plain float model.
TrainingCheckpoint MakeTrainingCheckpoint(int num_expert);

}  // namespace binarymos
