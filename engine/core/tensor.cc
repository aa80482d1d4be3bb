#include "engine/core/tensor.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace binarymos {

size_t SizeOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kU8:
    case DType::kF8E4M3:
      return 1;
  }
  return 0;
}

const char* Name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kF16:
      return "F16";
    case DType::kBF16:
      return "BF16";
    case DType::kU8:
      return "U8";
    case DType::kI32:
      return "I32";
    case DType::kF8E4M3:
      return "F8_E4M3";
  }
  return "?";
}

Shape::Shape(std::initializer_list<int64_t> dims)
    : rank_(static_cast<int>(dims.size())) {
  BINARYMOS_CHECK_LE(rank_, kMaxRank);
  std::copy(dims.begin(), dims.end(), dims_.begin());
}

int64_t Shape::num_elements() const {
  int64_t product = 1;
  for (int i = 0; i < rank_; ++i) product *= dims_[i];
  return product;
}

std::string Shape::ToString() const {
  std::string text = "[";
  for (int i = 0; i < rank_; ++i) {
    absl::StrAppend(&text, i == 0 ? "" : ", ", dims_[i]);
  }
  return text + "]";
}

TensorView TensorView::FirstRows(int64_t rows) const {
  BINARYMOS_CHECK(rows >= 0 && rows <= shape[0]) << rows << " rows";
  TensorView view = *this;
  switch (shape.rank()) {
    case 1:
      view.shape = Shape{rows};
      break;
    case 2:
      view.shape = Shape{rows, shape[1]};
      break;
    case 3:
      view.shape = Shape{rows, shape[1], shape[2]};
      break;
    default:
      view.shape = Shape{rows, shape[1], shape[2], shape[3]};
  }
  return view;
}

TensorView TensorView::Row(int64_t row) const {
  BINARYMOS_CHECK(row >= 0 && row < shape[0]) << "row " << row;
  TensorView view = *this;
  switch (shape.rank()) {
    case 1:
      view.shape = Shape{};
      break;
    case 2:
      view.shape = Shape{shape[1]};
      break;
    case 3:
      view.shape = Shape{shape[1], shape[2]};
      break;
    default:
      view.shape = Shape{shape[1], shape[2], shape[3]};
  }
  view.data = static_cast<char*>(data) + row * view.bytes();
  return view;
}

}  // namespace binarymos
