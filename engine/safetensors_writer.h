// Writing safetensors files of any size with little memory.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/core/tensor.h"
#include "engine/output_directory.h"

namespace binarymos {

// A tensor that is to be written. Names need no escaping in JSON.
struct TensorSpec {
  std::string name;
  DType dtype = DType::kF16;
  Shape shape;

  size_t bytes() const {
    return static_cast<size_t>(shape.num_elements()) * SizeOf(dtype);
  }
};

// Streams tensors into one file. Move-only; used on one thread.
class SafetensorsWriter {
 public:
  // Writes the header. The tensors' bytes are to follow in this order, without
  // gaps: Append, any number of times. Errors as OutputFile.
  // REQUIRES: each begins at a multiple of its element's size.
  static absl::StatusOr<SafetensorsWriter> Create(
      OutputFile file, const std::vector<TensorSpec>& tensors);

  // REQUIRES: not more bytes than the tensors have.
  absl::Status Append(const void* data, size_t bytes);
  // REQUIRES: all bytes were appended.
  absl::Status Close();

 private:
  SafetensorsWriter(OutputFile file, size_t bytes)
      : file_(std::move(file)), bytes_left_(bytes) {}

  OutputFile file_;
  size_t bytes_left_;
};

// Number of tensors in each of the files that `tensors`, in their order, are
// distributed to: as many as fit into `max_bytes`, and at least one.
std::vector<size_t> PlanShards(const std::vector<TensorSpec>& tensors,
                               size_t max_bytes);
// "model.safetensors", or "model-00002-of-00003.safetensors" for index 1 of 3.
std::string ShardName(size_t index, size_t count);
// model.safetensors.index.json of shards with so many tensors each.
std::string ShardIndexJson(const std::vector<TensorSpec>& tensors,
                           const std::vector<size_t>& shard_sizes);

}  // namespace binarymos
