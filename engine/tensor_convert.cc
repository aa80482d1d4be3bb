#include "engine/tensor_convert.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "engine/core/float16.h"

namespace binarymos {
namespace {

// A float format as the bits of its elements.
template <typename BitsType, BitsType kExponentMask,
          float (*kToFloat)(BitsType)>
struct Format {
  using Bits = BitsType;
  static constexpr Bits kSign = Bits{1} << (8 * sizeof(Bits) - 1);
  static constexpr Bits kExponent = kExponentMask;

  static Bits Magnitude(Bits bits) { return bits & Bits(~kSign); }
  static bool IsFinite(Bits bits) { return Magnitude(bits) < kExponent; }
  static float ToFloat(Bits bits) { return kToFloat(bits); }
};

float Identity(uint32_t bits) { return std::bit_cast<float>(bits); }

using F16 = Format<uint16_t, 0x7c00, HalfToFloat>;
using BF16 = Format<uint16_t, 0x7f80, BFloat16ToFloat>;
using F32 = Format<uint32_t, 0x7f800000, Identity>;

// function(format) with the format of `dtype`. REQUIRES: IsFloat(dtype).
template <typename Function>
auto WithFormat(DType dtype, Function function) {
  switch (dtype) {
    case DType::kF16:
      return function(F16());
    case DType::kBF16:
      return function(BF16());
    default:
      BINARYMOS_CHECK(dtype == DType::kF32) << Name(dtype);
      return function(F32());
  }
}

}  // namespace

bool IsFloat(DType dtype) {
  return dtype == DType::kF16 || dtype == DType::kBF16 || dtype == DType::kF32;
}

int64_t FindNotFinite(const ConstTensorView& tensor) {
  return WithFormat(tensor.dtype, [&](auto format) -> int64_t {
    using F = decltype(format);
    const auto elements = tensor.span<typename F::Bits>();
    typename F::Bits largest = 0;
    for (const auto bits : elements) {
      largest = std::max(largest, F::Magnitude(bits));
    }
    if (largest < F::kExponent) return -1;
    const auto it =
        std::find_if_not(elements.begin(), elements.end(), F::IsFinite);
    return it - elements.begin();
  });
}

int64_t PackSigns(const ConstTensorView& latent, std::span<uint8_t> out) {
  return WithFormat(latent.dtype, [&](auto format) -> int64_t {
    using F = decltype(format);
    const auto elements = latent.span<typename F::Bits>();
    BINARYMOS_CHECK_EQ(elements.size(), 8 * out.size());
    int64_t num_zeros = 0;
    for (size_t j = 0; j < out.size(); ++j) {
      unsigned byte = 0;
      for (int i = 0; i < 8; ++i) {
        const auto bits = elements[8 * j + i];
        const bool zero = F::Magnitude(bits) == 0;
        const bool plus = (bits & F::kSign) == 0;
        byte |= static_cast<unsigned>(plus || zero) << i;
        num_zeros += zero ? 1 : 0;
      }
      out[j] = static_cast<uint8_t>(byte);
    }
    return num_zeros;
  });
}

HalvesResult ToHalves(const ConstTensorView& values, std::span<uint16_t> out) {
  HalvesResult result;
  if (values.dtype == DType::kF16) {
    BINARYMOS_CHECK_EQ(values.bytes(), out.size_bytes());
    std::memcpy(out.data(), values.data, out.size_bytes());
    return result;
  }
  WithFormat(values.dtype, [&](auto format) {
    using F = decltype(format);
    const auto elements = values.span<typename F::Bits>();
    BINARYMOS_CHECK_EQ(elements.size(), out.size());
    for (size_t i = 0; i < out.size(); ++i) {
      out[i] = FloatToHalf(F::ToFloat(elements[i]));
      if (!F16::IsFinite(out[i]) && result.overflow < 0) {
        result.overflow = static_cast<int64_t>(i);
      }
      const bool flushed =
          F16::Magnitude(out[i]) == 0 && F::Magnitude(elements[i]) != 0;
      result.num_flushed += flushed ? 1 : 0;
    }
  });
  return result;
}

float ElementOf(const ConstTensorView& tensor, int64_t i) {
  return WithFormat(tensor.dtype, [&](auto format) {
    using F = decltype(format);
    return F::ToFloat(tensor.span<typename F::Bits>()[i]);
  });
}

ConstTensorView Slice(const ConstTensorView& tensor, int64_t begin,
                      int64_t count) {
  BINARYMOS_CHECK_LE(begin + count, tensor.shape.num_elements());
  const auto* data = static_cast<const char*>(tensor.data);
  return {data + static_cast<size_t>(begin) * SizeOf(tensor.dtype),
          tensor.dtype,
          {count},
          tensor.device};
}

}  // namespace binarymos
