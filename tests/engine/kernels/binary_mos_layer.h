// Random binary linears for the tests of their kernels.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "engine/core/float16.h"
#include "engine/core/tensor.h"
#include "engine/kernels/reference/binary_mos_linear.h"

namespace binarymos {

struct LayerShape {
  int64_t in = 0;
  int64_t out = 0;
  int experts = 4;
  bool gate = true;
  bool bias = false;
};

// A random layer as a checkpoint holds it.
struct Layer {
  explicit Layer(const LayerShape& layer_shape, uint32_t seed = 1)
      : shape(layer_shape), random(seed) {
    sign.resize(shape.out * shape.in / 8);
    for (uint8_t& bits : sign) bits = static_cast<uint8_t>(random());
    gate = Halves(shape.experts * shape.in, 0.0f, 0.05f);
    in_scale = Halves(shape.experts * shape.in, 0.5f, 0.2f);
    out_scale = Halves(shape.experts * shape.out, 0.3f, 0.1f);
    bias = Halves(shape.out, 0.0f, 1.0f);
  }

  reference::BinaryMosWeights weights() const {
    const int64_t experts = shape.experts;
    reference::BinaryMosWeights weights;
    weights.sign = {sign.data(), DType::kU8, {shape.out, shape.in / 8}};
    if (shape.gate) {
      weights.gate = {gate.data(), DType::kF16, {experts, shape.in}};
    }
    weights.in_scale = {in_scale.data(), DType::kF16, {experts, shape.in}};
    weights.out_scale = {out_scale.data(), DType::kF16, {experts, shape.out}};
    if (shape.bias) weights.bias = {bias.data(), DType::kF16, {shape.out}};
    return weights;
  }

  std::vector<uint16_t> Halves(int64_t count, float mean, float deviation) {
    std::normal_distribution<float> normal(mean, deviation);
    std::vector<uint16_t> halves(count);
    for (uint16_t& half : halves) half = FloatToHalf(normal(random));
    return halves;
  }

  LayerShape shape;
  std::mt19937 random;
  std::vector<uint8_t> sign;
  std::vector<uint16_t> gate, in_scale, out_scale, bias;
};

inline std::vector<float> RandomInputs(int64_t count, uint32_t seed = 7) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(count);
  for (float& value : x) value = normal(random);
  return x;
}

}  // namespace binarymos
