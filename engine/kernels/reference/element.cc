#include "engine/kernels/reference/element.h"

#include "engine/core/check.h"
#include "engine/core/float16.h"
#include "engine/core/float8.h"

namespace binarymos::reference {

double Element(const ConstTensorView& tensor, int64_t index) {
  BINARYMOS_CHECK(index >= 0 && index < tensor.shape.num_elements())
      << index << " of " << tensor.shape.ToString();
  switch (tensor.dtype) {
    case DType::kF32:
      return tensor.span<float>()[index];
    case DType::kF16:
      return HalfToFloat(tensor.span<uint16_t>()[index]);
    case DType::kBF16:
      return BFloat16ToFloat(tensor.span<uint16_t>()[index]);
    case DType::kF8E4M3:
      return E4m3ToFloat(tensor.span<uint8_t>()[index]);
    default:
      BINARYMOS_CHECK(false) << Name(tensor.dtype);
      return 0;
  }
}

}  // namespace binarymos::reference
