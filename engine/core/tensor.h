// Views of tensors, and one owner.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <utility>

#include "engine/core/buffer.h"
#include "engine/core/check.h"

namespace binarymos {

enum class DType : uint8_t { kF32, kF16, kBF16, kU8, kI32, kF8E4M3 };

// Bytes of one element.
size_t SizeOf(DType dtype);
// "F32", "F16", "BF16", "U8", "I32", "F8_E4M3", as in safetensors.
const char* Name(DType dtype);

// Where the bytes are. Kernels only accept views of their own place.
enum class Device : uint8_t { kHost, kCuda };

// Up to four dimensions, outermost first. Row-major, dense.
class Shape {
 public:
  static constexpr int kMaxRank = 4;

  Shape() = default;
  Shape(std::initializer_list<int64_t> dims);

  int rank() const { return rank_; }
  int64_t operator[](int i) const {
    BINARYMOS_CHECK(i >= 0 && i < rank_) << "dimension " << i;
    return dims_[i];
  }
  int64_t num_elements() const;
  std::string ToString() const;  // "[2, 3]"

  friend bool operator==(const Shape&, const Shape&) = default;

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

// Memory that somebody else owns, read-only.
struct ConstTensorView {
  const void* data = nullptr;  // null: no tensor (an absent bias)
  DType dtype = DType::kF32;
  Shape shape;
  Device device = Device::kHost;

  explicit operator bool() const { return data != nullptr; }
  size_t bytes() const {
    return static_cast<size_t>(shape.num_elements()) * SizeOf(dtype);
  }
  // REQUIRES: host memory whose element type has the size of T.
  template <typename T>
  std::span<const T> span() const {
    BINARYMOS_CHECK(device == Device::kHost);
    BINARYMOS_CHECK_EQ(sizeof(T), SizeOf(dtype));
    return {static_cast<const T*>(data),
            static_cast<size_t>(shape.num_elements())};
  }
};

// Memory that somebody else owns.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  Shape shape;
  Device device = Device::kHost;

  explicit operator bool() const { return data != nullptr; }
  operator ConstTensorView() const {  // NOLINT(google-explicit-constructor)
    return {data, dtype, shape, device};
  }
  size_t bytes() const { return ConstTensorView(*this).bytes(); }
  template <typename T>
  std::span<T> span() const {
    const auto elements = ConstTensorView(*this).span<T>();
    return {const_cast<T*>(elements.data()), elements.size()};
  }
  // The first `rows` entries of the outermost dimension.
  TensorView FirstRows(int64_t rows) const;
  // Entry `row` of the outermost dimension, one rank lower.
  TensorView Row(int64_t row) const;
};

// Owns the memory of a tensor. Move-only.
class Tensor {
 public:
  Tensor() = default;
  Tensor(Buffer buffer, DType dtype, Shape shape, Device device)
      : buffer_(std::move(buffer)),
        view_{buffer_.data(), dtype, shape, device} {}
  Tensor(Tensor&& other) noexcept { *this = std::move(other); }
  Tensor& operator=(Tensor&& other) noexcept {
    buffer_ = std::move(other.buffer_);
    view_ = std::exchange(other.view_, {});
    return *this;
  }

  const TensorView& view() const { return view_; }
  size_t bytes() const { return view_.data == nullptr ? 0 : view_.bytes(); }

 private:
  Buffer buffer_;
  TensorView view_;
};

}  // namespace binarymos
