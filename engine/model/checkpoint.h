// The tensors of a model directory, memory-mapped.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/core/tensor.h"

namespace binarymos {

// One or more safetensors files that were checked in full before the first
// tensor is handed out: every name, dtype, shape and offset. Owns the mappings;
// views are valid while it lives. Constant and thread-safe after Open.
//
// A file that shrinks while it is mapped ends the process with SIGBUS, as with
// every program that maps files: replace model directories, do not edit them.
class Checkpoint {
 public:
  // A tensor as the file's header describes it.
  struct Entry {
    std::string dtype;  // as in the file: "F16", "I64", ...
    Shape shape;
    size_t bytes = 0;
    const void* data = nullptr;  // in the mapping; aligned to the element size
    int file = 0;                // index into files()
  };

  // Maps `<model_dir>/model.safetensors`, or the shards that
  // `model.safetensors.index.json` names. NOT_FOUND if there is neither, or
  // a shard is missing; INVALID_ARGUMENT naming file, tensor and what was
  // expected.
  static absl::StatusOr<Checkpoint> Open(const std::string& model_dir);

  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();

  // NOT_FOUND if there is no such tensor; INVALID_ARGUMENT if its dtype is one
  // that DType does not have.
  absl::StatusOr<ConstTensorView> Find(std::string_view name) const;
  bool Contains(std::string_view name) const;

  // Tells the kernel that the pages that lie fully inside `tensor` are not
  // needed soon. Reading it afterwards is correct and slow. `tensor` must be a
  // view that Find returned.
  void Release(const ConstTensorView& tensor) const;

  // All tensors, by name.
  const std::map<std::string, Entry, std::less<>>& tensors() const {
    return tensors_;
  }
  // Paths of the mapped files.
  const std::vector<std::string>& files() const { return files_; }
  // File that holds `name`, for messages; the model directory if none does.
  const std::string& FileOf(std::string_view name) const;

 private:
  class Mapping;

  explicit Checkpoint(std::string model_dir);
  absl::Status AddFile(const std::string& path);
  absl::Status AddShards(const std::string& index_path);

  std::string model_dir_;
  std::vector<std::string> files_;
  std::vector<std::unique_ptr<Mapping>> mappings_;  // same order as files_
  std::map<std::string, Entry, std::less<>> tensors_;
};

}  // namespace binarymos
