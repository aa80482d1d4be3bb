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

  // Zeroed host memory, aligned to 4096 bytes, in huge pages where the kernel
  // gives them: buffers of 256 KiB to 32 MiB share mappings, one behind the
  // other, and larger ones begin at a huge page. A page takes memory once it is
  // written, near the thread that does so. Any thread.
  // RESOURCE_EXHAUSTED if there is no memory.
  static absl::StatusOr<Buffer> AllocateHost(size_t bytes);

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
  Free free_ = nullptr;
};

}  // namespace binarymos
