// Owners of raw memory.
#pragma once

#include <cstddef>
#include <utility>

#include "absl/status/statusor.h"

namespace binarymos {

// Owns a range of bytes and knows how to free it. Move-only.
class Buffer {
 public:
  using Free = void (*)(void* data, size_t bytes);

  Buffer() = default;
  Buffer(void* data, size_t bytes, Free free)
      : data_(data), bytes_(bytes), free_(free) {}
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(free_, other.free_);
    return *this;
  }
  ~Buffer() {
    if (data_ != nullptr) free_(data_, bytes_);
  }

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

  // Zeroed host memory, aligned to 64 bytes; huge pages are asked for where
  // the size is worth it. RESOURCE_EXHAUSTED if there is no memory.
  static absl::StatusOr<Buffer> AllocateHost(size_t bytes);

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
  Free free_ = nullptr;
};

}  // namespace binarymos
