// Binary linears as their CUDA kernels take them.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/kernels/cuda/binary_mos_input.h"
#include "engine/kernels/cuda/binary_mos_pack.h"
#include "tests/engine/cuda/emulated_block.h"
#include "tests/engine/kernels/binary_mos_layer.h"

namespace binarymos {

inline cuda::BinaryMosInput InputOf(const Layer& layer,
                                    const std::vector<float>& x) {
  return {.x = x.data(),
          .gate = layer.shape.gate ? layer.gate.data() : nullptr,
          .in_scale = layer.in_scale.data(),
          .in = layer.shape.in,
          .experts = layer.shape.experts};
}

inline std::vector<uint32_t> PackLayer(const Layer& layer,
                                       EmulatedOrder order) {
  const cuda::BinaryMosShape shape{layer.shape.in, layer.shape.out,
                                   layer.shape.experts};
  std::vector<uint32_t> packed(shape.sign_words(), ~0u);
  RunEmulated(
      cuda::PackSigns{
          .shape = shape, .sign = layer.sign.data(), .packed = packed.data()},
      order);
  return packed;
}

}  // namespace binarymos
