#include "engine/kernels/reference/binary_mos_linear.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include "engine/core/check.h"
#include "engine/kernels/reference/element.h"
#include "engine/kernels/reference/softmax.h"

namespace binarymos::reference {
namespace {

constexpr int64_t kSlice = 256;
constexpr int kGroups = 8;
constexpr int kLanes = 16;

// Element (row, column) of a matrix.
double At(const ConstTensorView& matrix, int64_t row, int64_t column) {
  return Element(matrix, row * matrix.shape[1] + column);
}

// Row `row` of a bit matrix.
const uint8_t* SignRow(const ConstTensorView& sign, int64_t row) {
  return sign.span<uint8_t>().data() + row * sign.shape[1];
}
bool IsPositive(const uint8_t* sign_row, int64_t k) {
  return (sign_row[k / 8] >> (k % 8) & 1) != 0;
}

std::vector<double> Gates(const BinaryMosWeights& weights,
                          const ConstTensorView& x, int64_t row) {
  if (!weights.gate) return {1.0};
  std::vector<double> logits;
  for (int64_t e = 0; e < weights.gate.shape[0]; ++e) {
    double sum = 0;
    for (int64_t k = 0; k < weights.gate.shape[1]; ++k) {
      sum += At(x, row, k) * At(weights.gate, e, k);
    }
    logits.push_back(sum);
  }
  return Softmax(logits);
}

// Element `i` of gates · scale, scale: [E, n].
double MixedScale(std::span<const double> gates, const ConstTensorView& scale,
                  int64_t i) {
  double sum = 0;
  for (size_t e = 0; e < gates.size(); ++e) sum += gates[e] * At(scale, e, i);
  return sum;
}

// --- Canonical arithmetic ---------------------------------------------------

// engine/kernels/cpu/canonical_math.h, one lane.
float CanonicalExp(float value) {
  if (std::isnan(value)) return value;
  const float x = std::clamp(value, -104.0f, 89.0f);
  const float k = std::fma(x, 0x1.715476p+0f, 0x1.8p23f) - 0x1.8p23f;
  float r = std::fma(k, -0x1.62e4p-1f, x);
  r = std::fma(k, -0x1.7f7d1cp-20f, r);
  constexpr std::array<float, 8> kTaylor = {1.0f / 5040, 1.0f / 720, 1.0f / 120,
                                            1.0f / 24,   1.0f / 6,   0.5f,
                                            1.0f,        1.0f};
  float p = 0.0f;
  for (const float coefficient : kTaylor) p = std::fma(p, r, coefficient);
  const int exponent = static_cast<int>(k);
  const int half = exponent >> 1;
  return std::ldexp(p, half) * std::ldexp(1.0f, exponent - half);
}

// A slice: lane i holds the elements i, i + 16, ...; then lanes i and i + 8 are
// added, i and i + 4, and so on.
float CanonicalSliceDot(const ConstTensorView& x, int64_t x_row,
                        const ConstTensorView& gate, int64_t expert,
                        int64_t begin, int64_t end) {
  std::array<float, kLanes> lanes = {};
  for (int64_t k = begin; k < end; ++k) {
    float& lane = lanes[k % kLanes];
    lane = std::fma(static_cast<float>(At(x, x_row, k)),
                    static_cast<float>(At(gate, expert, k)), lane);
  }
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// Slices ascending inside the groups, then the groups ascending.
float CanonicalDot(const ConstTensorView& x, int64_t x_row,
                   const ConstTensorView& gate, int64_t expert) {
  const int64_t in = gate.shape[1];
  const int64_t num_slices = (in + kSlice - 1) / kSlice;
  float total = 0;
  for (int64_t group = 0; group < kGroups; ++group) {
    float sum = 0;
    for (int64_t s = group * num_slices / kGroups;
         s < (group + 1) * num_slices / kGroups; ++s) {
      sum += CanonicalSliceDot(x, x_row, gate, expert, s * kSlice,
                               std::min((s + 1) * kSlice, in));
    }
    total += sum;
  }
  return total;
}

std::vector<float> CanonicalGates(const BinaryMosWeights& weights,
                                  const ConstTensorView& x, int64_t row) {
  if (!weights.gate) return {1.0f};
  std::vector<float> gates;
  for (int64_t e = 0; e < weights.gate.shape[0]; ++e) {
    gates.push_back(CanonicalDot(x, row, weights.gate, e));
  }
  float max = gates[0];
  for (const float logit : gates) max = logit > max ? logit : max;
  float sum = 0;
  for (float& gate : gates) sum += gate = CanonicalExp(gate - max);
  for (float& gate : gates) gate /= sum;
  return gates;
}

float CanonicalMixedScale(std::span<const float> gates,
                          const ConstTensorView& scale, int64_t i) {
  float sum = 0;
  for (size_t e = 0; e < gates.size(); ++e) {
    sum = std::fma(gates[e], static_cast<float>(At(scale, e, i)), sum);
  }
  return sum;
}

struct QuantizedSlice {
  std::array<int32_t, kSlice> q = {};
  float scale = 0;
};

QuantizedSlice Quantize(std::span<const float> u, int activation_bits) {
  QuantizedSlice slice;
  float max = 0;
  for (const float value : u) {
    if (!std::isfinite(value)) {
      slice.scale = std::numeric_limits<float>::quiet_NaN();
      return slice;
    }
    max = std::max(max, std::fabs(value));
  }
  if (max < 0x1p-100f) return slice;
  const auto qmax = static_cast<float>((1 << (activation_bits - 1)) - 1);
  slice.scale = max / qmax;
  const float inverse = qmax / max;
  for (size_t i = 0; i < u.size(); ++i) {
    slice.q[i] = static_cast<int32_t>(
        std::clamp(std::nearbyint(u[i] * inverse), -qmax, qmax));
  }
  return slice;
}

std::vector<QuantizedSlice> QuantizeRow(const BinaryMosWeights& weights,
                                        const ConstTensorView& x, int64_t row,
                                        std::span<const float> gates,
                                        int activation_bits) {
  const int64_t in = x.shape[1];
  std::vector<QuantizedSlice> slices;
  for (int64_t first = 0; first < in; first += kSlice) {
    std::vector<float> u;
    for (int64_t k = first; k < std::min(first + kSlice, in); ++k) {
      u.push_back(static_cast<float>(At(x, row, k)) *
                  CanonicalMixedScale(gates, weights.in_scale, k));
    }
    slices.push_back(Quantize(u, activation_bits));
  }
  return slices;
}

int32_t SignedSum(const QuantizedSlice& slice, const ConstTensorView& sign,
                  int64_t output, int64_t first) {
  const int64_t count = std::min<int64_t>(kSlice, sign.shape[1] * 8 - first);
  const uint8_t* row = SignRow(sign, output);
  int32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    sum += IsPositive(row, first + i) ? slice.q[i] : -slice.q[i];
  }
  return sum;
}

float SumSlices(std::span<const QuantizedSlice> slices,
                const ConstTensorView& sign, int64_t output) {
  const auto n = static_cast<int64_t>(slices.size());
  float total = 0;
  for (int64_t group = 0; group < kGroups; ++group) {
    const int64_t begin = group * n / kGroups;
    const int64_t end = (group + 1) * n / kGroups;
    if (begin == end) continue;
    float sum = 0;
    for (int64_t s = begin; s < end; ++s) {
      if (slices[s].scale == 0) continue;
      const int32_t integer = SignedSum(slices[s], sign, output, s * kSlice);
      sum = std::fma(static_cast<float>(integer), slices[s].scale, sum);
    }
    total += sum;
  }
  return total;
}

}  // namespace

BinaryMosResult BinaryMosLinear(const BinaryMosWeights& weights,
                                const ConstTensorView& x) {
  const int64_t rows = x.shape[0];
  const int64_t in = x.shape[1];
  const int64_t out = weights.sign.shape[0];
  BinaryMosResult result;
  for (int64_t r = 0; r < rows; ++r) {
    const std::vector<double> gates = Gates(weights, x, r);
    result.gates.insert(result.gates.end(), gates.begin(), gates.end());
    std::vector<double> u;
    for (int64_t k = 0; k < in; ++k) {
      u.push_back(At(x, r, k) * MixedScale(gates, weights.in_scale, k));
    }
    for (int64_t o = 0; o < out; ++o) {
      const uint8_t* row = SignRow(weights.sign, o);
      double sum = 0;
      for (int64_t k = 0; k < in; ++k) {
        sum += IsPositive(row, k) ? u[k] : -u[k];
      }
      const double bias = weights.bias ? Element(weights.bias, o) : 0.0;
      result.y.push_back(sum * MixedScale(gates, weights.out_scale, o) + bias);
    }
  }
  return result;
}

QuantizedBinaryMosResult QuantizedBinaryMosLinear(
    const BinaryMosWeights& weights, const ConstTensorView& x,
    int activation_bits) {
  BINARYMOS_CHECK(activation_bits >= 2 && activation_bits <= 16);
  const int64_t rows = x.shape[0];
  const int64_t out = weights.sign.shape[0];
  QuantizedBinaryMosResult result;
  for (int64_t r = 0; r < rows; ++r) {
    const std::vector<float> gates = CanonicalGates(weights, x, r);
    result.gates.insert(result.gates.end(), gates.begin(), gates.end());
    const std::vector<QuantizedSlice> slices =
        QuantizeRow(weights, x, r, gates, activation_bits);
    for (int64_t o = 0; o < out; ++o) {
      const float sum = SumSlices(slices, weights.sign, o);
      const float scale = CanonicalMixedScale(gates, weights.out_scale, o);
      result.y.push_back(
          weights.bias ? std::fma(sum, scale,
                                  static_cast<float>(Element(weights.bias, o)))
                       : sum * scale);
    }
  }
  return result;
}

}  // namespace binarymos::reference
