// Arrays of a step on their way to the device.
#pragma once

#include <array>
#include <cstddef>
#include <span>

#include "absl/status/status.h"
#include "engine/backend/cuda_driver.h"
#include "engine/core/buffer.h"

namespace binarymos {

// Packs several arrays into one copy. The host writes into one of as many
// page-locked buffers as steps may be in flight; the device has one, since what
// reads it runs in order. All grow to the largest copy, which waits for the
// device, and stay. Confined to the backend's thread.
class CudaUpload {
 public:
  // An array, and where in data() it will be: a multiple of 16.
  struct Part {
    std::span<const std::byte> bytes;
    size_t& offset;
  };

  // Enqueues the copy. Copies with parts of equal sizes have them at equal
  // places while the memory does not move. REQUIRES: the copy
  // kMaxCudaStepsInFlight before it has run.
  absl::Status Copy(std::span<const Part> parts, CudaDriver& driver);

  // Makes room for copies of `bytes` bytes, alignment included.
  absl::Status Reserve(size_t bytes, CudaDriver& driver);
  // Times that the memory has moved.
  int num_moves() const { return num_moves_; }

  // Device memory.
  template <typename T>
  const T* At(size_t offset) const {
    return reinterpret_cast<const T*>(static_cast<const char*>(device_.data()) +
                                      offset);
  }

 private:
  int num_moves_ = 0;
  size_t next_ = 0;  // of pinned_
  std::array<Buffer, kMaxCudaStepsInFlight> pinned_;
  Buffer device_;
};

}  // namespace binarymos
