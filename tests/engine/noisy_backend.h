// How far rounding may move logits, measured on the reference.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "tests/engine/forwarding_backend.h"

namespace binarymos {

// Rounds at random what the canonical arithmetic rounds:
//  - A binary linear rounds u = x ⊙ s_in to a grid that is at most
//    max |u| / 8191 wide within a slice of 256 inputs (P = 14): an error of up
//    to max |u| / (2 * 8191) in each element. As an error of x it grows by the
//    ratio of the largest to the smallest s_in of a slice, 1.42 in synthetic
//    models (uniform in 1 +- 0.1 sqrt(3)).
//  - A sum of K products in 16 strided lanes and a tree is what exact
//    arithmetic gives for inputs changed by a factor within 1 +- (K / 16 + 5)
//    2^-24 each. With K <= 352 that is 27 * 2^-24; kRelativeError also has room
//    for the elementwise operations before it, a few of 2^-24 each.
// The input of every linear is changed by independent uniform errors of these
// sizes. The largest change of any logit over all positions and a few such runs
// is one sample of the largest error that the arithmetic makes; the bound is
// four times it.
class NoisyBackend : public ForwardingBackend {
 public:
  NoisyBackend(std::unique_ptr<Backend> inner, uint32_t seed)
      : ForwardingBackend(std::move(inner)), random_(seed) {}

  void Linear(const PackedLinear& linear, const ConstTensorView& x,
              Output output, const TensorView& y,
              const TensorView& gate_sums) override {
    const bool quantized = linear.kind() == LinearKind::kBinaryMos;
    const auto exact = x.span<float>();
    noisy_.assign(exact.begin(), exact.end());
    const int64_t width = x.shape[1];
    for (int64_t row = 0; row < x.shape[0]; ++row) {
      const std::span<float> values(noisy_.data() + row * width, width);
      for (int64_t begin = 0; begin < width; begin += kSlice) {
        const auto slice =
            values.subspan(begin, std::min<int64_t>(kSlice, width - begin));
        float largest = 0.0f;
        for (float value : slice) largest = std::max(largest, std::abs(value));
        const float step = quantized ? kActivationError * largest : 0.0f;
        for (float& value : slice) {
          value += value * kRelativeError * uniform_(random_) +
                   step * uniform_(random_);
        }
      }
    }
    inner().Linear(linear, {noisy_.data(), DType::kF32, x.shape, x.device},
                   output, y, gate_sums);
  }

 private:
  static constexpr float kRelativeError = 48 * 0x1p-24f;
  static constexpr float kActivationError = 1.42f / (2 * 8191);
  static constexpr int kSlice = 256;

  std::mt19937 random_;
  std::uniform_real_distribution<float> uniform_{-1.0f, 1.0f};
  std::vector<float> noisy_;
};

}  // namespace binarymos
